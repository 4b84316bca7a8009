"""Commands about this machine: doctor, sandbox, lm-eval."""

from __future__ import annotations

import json
import sys

import click


@click.command(epilog="Exit code: 0 all that is needed is there, 1 something is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> int:
    """Check that everything is in place here.

    Versions, what t2eval needs of other packages beyond what they promise, device, plug-in, sandbox, caches, tasks and the embedded
    base model.

    \b
    Examples:
      t2 doctor
      t2 doctor --json | python -m json.tool
    """
    from t2eval.checks.doctor import examine

    checks = examine()
    healthy = all(check.status != "missing" for check in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [check.as_dict() for check in checks]}, indent=2))
        return 0 if healthy else 1
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
        if check.remedy:
            click.echo(f"{'':<8} {'':<{width}}  → {check.remedy}")
    click.echo("Everything that is needed is there." if healthy else "Something that is needed is missing: see the arrows.")
    return 0 if healthy else 1


@click.group()
def sandbox() -> None:
    """Where model-written programs run.

    \b
    Examples:
      t2 sandbox check
    """


@sandbox.command(epilog="Exit code: 0 every attack is contained, 1 one is not, or programs cannot be isolated here.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def check(as_json: bool) -> int:
    """Run the attack set on this machine and print what is contained.

    \b
    Examples:
      t2 sandbox check
      T2EVAL_SANDBOX=landlock t2 sandbox check --json
    """
    from t2eval.sandbox import require
    from t2eval.sandbox.attacks import attack_report

    isolation = require()
    results = attack_report()
    escaped = sum(not result.contained for result in results)
    if as_json:
        listed = [
            {"attack": result.name, "what": result.what, "contained": result.contained, "status": result.verdict.status}
            for result in results
        ]
        click.echo(json.dumps({"isolation": isolation.kind, "reason": isolation.reason, "attacks": listed}, indent=2))
        return 1 if escaped else 0
    click.echo(f"Isolation: {isolation.kind} ({isolation.reason})")
    width = max(len(result.name) for result in results)
    for result in results:
        click.echo(f"{'contained' if result.contained else 'ESCAPED':<10} {result.name:<{width}}  {result.what} ({result.verdict.status})")
    click.echo(f"{len(results) - escaped} of {len(results)} attacks are contained.")
    return 1 if escaped else 0


@click.command("lm-eval", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-eval with t2eval's plug-in loaded.

    For interpreters that do not read `.pth` files: wherever t2eval is installed in the usual way, `lm_eval …`
    does the same. Takes lm-eval's own arguments.

    \b
    Examples:
      t2 lm-eval --model t2-fewshot --tasks embedded_math_unseen
      t2 lm-eval ls tasks
      t2 lm-eval run --help
    """
    from t2eval.errors import UsageError
    from t2eval.models.launch import typo_message
    from t2eval.models.plugin import activate

    activate()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    except (ValueError, KeyError) as error:
        message = typo_message(error)
        if message is None:
            raise
        raise UsageError(message) from error
