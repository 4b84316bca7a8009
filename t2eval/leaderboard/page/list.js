// A list of which only the visible part is in the page, so that it may be long.

/**
 * count: how many; height: of each, in pixels; render(place): its children; open(place): it was chosen.
 * Gives {node, show(count), choose(place), chosen()}.
 */
function longList({ label, height, render, open }) {
  const room = el("div", { class: "list-room" });
  const node = el("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": label }, room);
  const prefix = `list${longList.number++}-`;
  let count = 0;
  let chosen = -1;
  let drawn = [0, 0];

  function draw(force) {
    const first = Math.max(0, Math.floor(node.scrollTop / height) - 6);
    const last = Math.min(count, Math.ceil((node.scrollTop + (node.clientHeight || 600)) / height) + 6);
    if (!force && first === drawn[0] && last === drawn[1]) return;
    drawn = [first, last];
    const items = [];
    for (let place = first; place < last; place++) {
      const item = el(
        "div",
        {
          class: "item", role: "option", id: prefix + place, "aria-selected": place === chosen ? "true" : "false",
          "aria-setsize": count, "aria-posinset": place + 1, on: { click: () => choose(place) },
        },
        render(place),
      );
      item.style.height = `${height}px`;
      item.style.top = `${place * height}px`;
      items.push(item);
    }
    room.replaceChildren(...items);
  }

  function choose(place, quiet) {
    if (place < 0 || place >= count) return;
    chosen = place;
    const top = place * height;
    if (top < node.scrollTop) node.scrollTop = top;
    else if (top + height > node.scrollTop + node.clientHeight) node.scrollTop = top + height - node.clientHeight;
    draw(true);
    node.setAttribute("aria-activedescendant", prefix + place);
    if (!quiet) open(place);
  }

  function show(size) {
    count = size;
    chosen = -1;
    node.removeAttribute("aria-activedescendant");
    room.style.height = `${size * height}px`;
    node.scrollTop = 0;
    draw(true);
  }

  const moves = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 8, PageUp: -8 };
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    let next = null;
    if (event.key in moves) next = chosen + moves[event.key];
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = count - 1;
    else if (event.key === "Enter" && chosen >= 0) next = chosen;
    if (next === null) return;
    event.preventDefault();
    event.stopPropagation();
    choose(Math.min(count - 1, Math.max(0, next)));
  });
  node.addEventListener("scroll", () => draw(false), { passive: true });
  new ResizeObserver(() => draw(true)).observe(node);
  return { node, show, choose, chosen: () => chosen };
}
longList.number = 0;
