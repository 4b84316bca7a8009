import pytest

from t2eval.errors import UsageError
from t2eval.paper import item as registry
from t2eval.paper import items as folder


@pytest.fixture
def fresh():
    registry.items.cache_clear()
    yield
    registry.items.cache_clear()


def test_every_item_says_what_it_is():
    found = registry.items()
    assert list(found) == [*(f"table{number}" for number in range(1, 11)), "limits", *(f"figure{number}" for number in range(4, 12))]
    for name, entry in found.items():
        assert entry.name == name
        assert entry.title and entry.measures.endswith(".")
        assert entry.reported.columns or entry.reported.text, name
        assert entry.draw is not None or name.startswith(("table", "limits")), name


def test_tables_come_before_figures_by_number():
    names = [name for name in registry.items() if name != "limits"]
    numbers = [(not name.startswith("table"), int(name.removeprefix("table").removeprefix("figure"))) for name in names]
    assert numbers == sorted(numbers)


def test_an_item_is_found_without_being_named(tmp_path, monkeypatch, fresh):
    (tmp_path / "extra.py").write_text(
        "from t2eval.paper.item import Item, Reported, Result\n"
        "ITEMS = (Item('figure99', 'New', 'A thing.', Reported('m', text='x'), lambda lab: Result(()), lambda result: {}),)\n"
    )
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    assert list(registry.items())[-1] == "figure99"
    assert registry.item("figure99").title == "New"


def test_an_unknown_item_names_near_ones():
    with pytest.raises(UsageError, match=r"Unknown item 'tabel1'. Did you mean 'table1'"):
        registry.item("tabel1")


def test_the_papers_figures_agree_between_its_tables():
    """Tables 1, 2 and 7 share rows."""
    one, two, seven = (registry.item(f"table{number}").reported.columns for number in (1, 2, 7))
    for columns in (one, two):
        for head, cells in columns.items():
            shared = {label: text for label, text in cells.items() if label in seven[head]}
            assert len(shared) >= 2
            assert all(seven[head][label] == text for label, text in shared.items())
    assert seven["GSM8K"] == {"base": "75.89", "IA3": "78.01", "DoRA": "78.09", "SVF": "79.15"}
    four = registry.item("table4").reported.columns
    assert list(four["GSM8K"].values()) == ["75.89", "78.62", "76.19", "79.23", "60.50", "57.92", "77.18", "75.66"]
