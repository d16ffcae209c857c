"""Which hooks a run has, and the order in which they are called."""

from __future__ import annotations

from pathlib import Path

from pdfx.config import Config
from pdfx.errors import UserError
from pdfx.model.custom_code import run_module_file
from pdfx.train.hooks.agreement import Agreement
from pdfx.train.hooks.coverage import Coverage
from pdfx.train.hooks.evaluation import Evaluation
from pdfx.train.hooks.guards import StepGuards
from pdfx.train.hooks.logging import Logging
from pdfx.train.hooks.profiling import Profiling
from pdfx.train.hooks.saving import Saving
from pdfx.train.run import Hook, Run


def hooks_in_order(run: Run, own: list[Hook]) -> list[Hook]:
    """All hooks of a run, with those of the recipe among them.

    The ranks compare their metrics before anything is decided by them. The guards may go back to a checkpoint, and what
    follows them then does not see the step. The recipe's own hooks come before what logs their figures and saves their
    state; an evaluation comes before the checkpoint that it judges.
    """
    coverage = Coverage(run)
    guards = StepGuards(run.config.guards, run.objective, run.say)
    return [Profiling(), Agreement(), coverage, guards, *own, Logging(coverage), Evaluation(), Saving(run)]


def load_hooks(config: Config) -> list[Hook]:
    """The hooks that ``train.hooks`` names, whose files are run for it. Their paths become absolute, so that a run's
    record of them holds in any folder.

    Raises:
        UserError: remote code is not trusted, or a name is not that of a hook.
    """
    names = config.train.hooks
    if names and not config.model.trust_remote_code:
        raise UserError(
            f"train.hooks names {', '.join(names)}, Python code that would run here; read it, then allow it with "
            "model.trust_remote_code=true."
        )
    hooks, paths = {}, []
    for name in names:
        file, _, kind = name.rpartition(":")
        path = Path(file).resolve()
        if not path.is_file():
            raise UserError(
                f"train.hooks names {name}, but '{file}' is not a file here (relative to {Path.cwd()}); give "
                "FILE.py:CLASS."
            )
        found = getattr(run_module_file(path), kind, None)
        if not (isinstance(found, type) and issubclass(found, Hook)):
            raise UserError(
                f"train.hooks names {name}, but {path} has no class '{kind}' that extends pdfx.train.hooks.Hook."
            )
        key = f"hook {path.name}:{kind}"
        if key in hooks:
            raise UserError(f"train.hooks names {path.name}:{kind} twice, so their states would mix; rename one.")
        hooks[key] = found()
        hooks[key].key = key
        paths.append(f"{path}:{kind}")
    config.train.hooks = paths
    return list(hooks.values())
