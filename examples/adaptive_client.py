r"""Adaptive client: the first pass here, the second on a server (vLLM, SGLang) that has each expert's LoRA adapter under the expert's name.

t2 expert export experts/library/seed-0 --lora 32 --output runs/adapters     # prints the server's command line
python examples/adaptive_client.py "what is 3 plus 4?" --prompt "Q: {question}\nA:" --stop "\n"
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import openai

from t2eval import attach, load_base
from t2eval.basemodel.load import model_source
from t2eval.expert.library import load_library
from t2eval.generation.engine import Engine
from t2eval.strategies.dispatch import DISPATCH_LABEL, Dispatcher, by_label, checked_labels, load_format, paper_format


def choose(library: str, question: str) -> str | None:
    """The expert that a question needs, None for the base model. The base is asked, with the classification expert if there is one."""
    experts = load_library(library)
    base = experts[0].card.base_model.id
    model, tokenizer = load_base(base)
    experts_of = by_label({each.name: each.label for each in experts})
    described = {each.label: each.description for each in experts if each.label in experts_of}
    form = load_format(library) or load_format(model_source(base)) or paper_format(described)
    if classifier := next((each for each in experts if each.label == DISPATCH_LABEL), None):
        attach(model, paths=list(classifier.z)).set_expert(classifier)
    label = Dispatcher(Engine(model, tokenizer, batch_size=1), form.with_labels(sorted(experts_of))).decide([question])[0].label
    checked_labels([label], experts_of, "others")
    return experts_of.get(label)


def served(client: openai.OpenAI, expert: str | None) -> str:
    """The name under which a server has an expert's adapter, or its base model. LookupError where it has none of it."""
    models = {each.id: each for each in client.models.list()}
    base = next((name for name, each in models.items() if not getattr(each, "parent", None)), "a base model")
    if (name := expert or base) not in models:
        raise LookupError(f"The server has no {name!r}, only {', '.join(models)}: export it, and start the server anew.")
    return f"{base}:{expert}" if expert and models[name].owned_by == "sglang" else name


def answer(client: openai.OpenAI, model: str, prompt: str, chat: bool, **settings: Any) -> Iterator[str]:
    """The model's answer, piece by piece."""
    if chat:
        for chunk in client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], stream=True, **settings):
            yield from (choice.delta.content or "" for choice in chunk.choices)
    else:
        for part in client.completions.create(model=model, prompt=prompt, stream=True, **settings):
            yield from (choice.text for choice in part.choices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--experts", default="experts/library/seed-0", help="The library that the adapters were exported from.")
    parser.add_argument("--server", default="http://localhost:8000/v1")
    parser.add_argument("--prompt", default="{question}", help=r"What is sent; \n is a new line.")
    parser.add_argument("--chat", action="store_true", help="Send it as a user's message, in the model's chat template.")
    parser.add_argument("--stop", help=r"Where an answer ends; \n is a new line.")
    given = parser.parse_args()
    client = openai.OpenAI(base_url=given.server, api_key="none")
    prompt = given.prompt.replace("\\n", "\n").replace("{question}", given.question)
    settings = {"temperature": 0, "max_tokens": 256, "stop": given.stop and given.stop.replace("\\n", "\n")}
    try:
        model = served(client, choose(given.experts, given.question))
        print(f"[{model}] ", end="", flush=True)
        for piece in answer(client, model, prompt, given.chat, **settings):
            print(piece, end="", flush=True)
        print()
    except (openai.OpenAIError, LookupError) as error:
        sys.exit(f"{given.server}: {error}")


if __name__ == "__main__":
    main()
