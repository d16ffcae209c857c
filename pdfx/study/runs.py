"""Making the runs of a study that are missing: each in a process of its own, several at a time."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, Popen

from pdfx.config import Config, load_config
from pdfx.errors import UserError
from pdfx.evaluate.kept import FOLDER
from pdfx.host.files import write_json
from pdfx.host.reading import read_json
from pdfx.study.plan import Planned, StudySection, members_of, overrides, planned_runs
from pdfx.study.records import Record, changed_setting, measure, read_embeddings, read_record, settings_of, together

LAUNCHER = f"{shlex.quote(sys.executable)} -m pdfx.train"
Say = Callable[[str], None]


@dataclass
class Runner:
    """Makes what a study lacks.

    Args:
        study: what to make.
        launcher: words before the recipe that start one run, such as "torchrun --nproc-per-node 8 -m pdfx.train".
        say: is given a sentence for each run.
        jobs: runs at a time.
    """

    study: StudySection
    launcher: str = LAUNCHER
    say: Say = print
    jobs: int = 1
    _children: set[Popen] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _probing: threading.Lock = field(default_factory=threading.Lock)

    def missing(self) -> list[Planned]:
        """The runs without a record.

        Raises:
            UserError: a record was made with other settings, or a row's settings do not fit the recipe.
        """
        missing = []
        for run in planned_runs(self.study):
            config = self.config(run)
            record = read_record(self.study.record_folder, run.name)
            if record is None:
                missing.append(run)
                continue
            compared = [(run.row, record.facts["settings"], config)]
            if (budget := record.facts.get("budget")) is not None:
                compared.append((self.study.budget_row, budget, self.config(self._budget_of(run))))
            for row, settings, now in compared:
                if (change := changed_setting(settings, now)) is not None:
                    raise UserError(
                        f"The record {self.study.record_folder / run.name}.json was made with {change}, as row '{row}' "
                        "has now; delete the record to make the run again, or give the row another name."
                    )
        return missing

    def config(self, run: Planned) -> Config:
        """The settings of a run, but for the number of steps that an equal budget gives it. Raises UserError."""
        words = [*overrides(self.study.rows[run.row].settings), f"train.seed={run.seed}"]
        config = load_config(self.study.recipe, [*words, "evaluate.keep_embeddings=true"])
        if config.data.evaluation is None:
            raise UserError(f"{self.study.recipe} names no data.evaluation, on which the rows would be compared.")
        return config

    def _budget_of(self, run: Planned) -> Planned:
        return Planned(self.study.budget_row, run.seed)

    def folder(self, run: Planned) -> Path:
        return Path(self.study.out) / "runs" / run.name

    def words(self, run: Planned) -> list[str]:
        """The command line of a run behind its launcher."""
        words = [*overrides(self.study.rows[run.row].settings), f"train.seed={run.seed}"]
        words += [f"train.output_dir={self.folder(run)}", "evaluate.keep_embeddings=true"]
        steps = self.steps(run)
        return [str(self.study.recipe), *words, *([] if steps is None else [f"train.max_steps={steps}"])]

    def make(self, runs: list[Planned]) -> list[Planned]:
        """Make runs, ``jobs`` at a time, and their records; returns those that failed, whose logs ``say`` names.

        An interruption ends the runs after a checkpoint; the same call resumes them.
        """
        done = 0

        def make_one(run: Planned) -> bool:
            nonlocal done
            if self._stopped.is_set():
                return False
            made = self.make_one(run)
            done += made
            if made:
                self.say(f"{run.name}: done, {done} of {len(runs)}.")
            return made

        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                results = list(pool.map(make_one, runs))
            except BaseException:
                self.stop()
                raise
        return [run for run, made in zip(runs, results, strict=True) if not made]

    def stop(self) -> None:
        """Ask all runs to save a checkpoint and stop; no more are started."""
        self._stopped.set()
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)

    def make_one(self, run: Planned) -> bool:
        """Make one run and its record. False if it failed."""
        folder = self.folder(run)
        if not self._start([*shlex.split(self.launcher), *self.words(run)], folder):
            return False
        self.record(run)
        return True

    def record(self, run: Planned) -> None:
        """Write the record of a finished run, and drop its checkpoints."""
        folder, config = self.folder(run), self.config(run)
        ranks, paths = measure(read_embeddings(folder))
        facts = {"row": run.row, "seed": run.seed, "settings": settings_of(config), **costs(folder), "paths": paths}
        if self.study.equal_of(run.row) != "steps":
            facts["budget"] = settings_of(self.config(self._budget_of(run)))
        Record(facts, ranks).write(self.study.record_folder, run.name)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def steps(self, run: Planned) -> int | None:
        """The steps that give a run its share of the budget; None if its own settings decide. Raises UserError if a
        probe fails, or the budget's row has no train.max_steps."""
        study = self.study
        equal = study.equal_of(run.row)
        if equal == "steps":
            return None
        of = self._budget_of(run)
        steps = self.config(of).train.max_steps
        if steps is None:
            raise UserError(f"{study.recipe} needs train.max_steps, from which the budget of '{of.row}' follows.")
        key = "flops" if equal == "flops" else "seconds"
        return max(1, round(self.probe(of)[key] * steps * study.rows[run.row].share / self.probe(run)[key]))

    def probe(self, run: Planned) -> dict[str, float]:
        """FLOPs and seconds of a step of a row, measured once in a short run and kept. Raises UserError."""
        file = Path(self.study.out) / "probes" / f"{run.row}.json"
        with self._probing:
            if not file.is_file():
                write_json(self._probe(run, file.with_name(f"{run.row}-{os.getpid()}")), file)
        return read_json(file)

    def _probe(self, run: Planned, folder: Path) -> dict[str, float]:
        words = [*overrides(self.study.rows[run.row].settings), f"train.max_steps={self.study.probe_steps}"]
        words += ["data.evaluation=null", "train.eval_steps=null", f"train.output_dir={folder}"]
        words += ["train.logging_steps=1", "train.metric_for_best_model=null"]
        if not self._start([*shlex.split(self.launcher), str(self.study.recipe), *words], folder):
            raise UserError(f"A step of row '{run.row}' could not be measured; see {log_of(folder)}.")
        # The first step also warms up.
        steps = timings(folder)[1:]
        shutil.rmtree(folder)
        means = {"flops": "model_flops", "seconds": "seconds"}
        return {name: sum(step[key] for step in steps) / len(steps) for name, key in means.items()}

    def _start(self, command: list[str], folder: Path) -> bool:
        """Run a command to its end, with its output in ``folder``'s log. False, said, if it fails."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = log_of(folder)
        with log.open("ab") as stream:
            child = Popen(
                command, stdout=stream, stderr=STDOUT, env=os.environ | environment(self.jobs), start_new_session=True
            )
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        if code and not self._stopped.is_set():
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            self.say(f"{folder.name} ended with code {code}: {' '.join(last)} The whole log is {log}.")
        return code == 0


def environment(jobs: int) -> dict[str, str]:
    """Variables of each of so many runs that share this machine's cores."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))}


def log_of(folder: Path) -> Path:
    """Where the output of a run goes: beside its folder, which holds nothing but the run's own files."""
    return folder.with_name(f"{folder.name}.log")


def timings(run: Path) -> list[dict[str, float]]:
    """What a run logged of its time."""
    return [json.loads(line) for line in (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()]


def costs(run: Path) -> dict[str, float]:
    """Steps, FLOPs and seconds of training of a finished run."""
    lines = timings(run)
    return {
        "steps": lines[-1]["step"],
        "flops": sum(line["model_flops"] for line in lines),
        "seconds": sum(line["seconds"] for line in lines),
    }


def ensembles(study: StudySection) -> list[Planned]:
    """Write the records of ensembles all of whose members have one; returns those whose members' embeddings, which lie
    in the study's ``out``, are gone."""
    lost = []
    planned = [
        (Planned(name, seed), row) for name, row in study.rows.items() if row.ensemble_of for seed in study.seeds
    ]
    for own, row in planned:
        members = members_of(row, own.seed)
        records = [read_record(study.record_folder, member.name) for member in members]
        facts = [record.facts for record in records if record is not None]
        names = [member.name for member in members]
        found = read_record(study.record_folder, own.name)
        if len(facts) < len(members) or (found is not None and found.facts["settings"] == names):
            continue
        folders = [Path(study.out) / "runs" / member.name for member in members]
        if not all((folder / FOLDER).is_dir() for folder in folders):
            lost.append(own)
            continue
        ranks, paths = measure(together([read_embeddings(folder) for folder in folders]))
        totals = {key: sum(one[key] for one in facts) for key in ("flops", "seconds", "steps")}
        record = Record({"row": own.row, "seed": own.seed, "settings": names, **totals, "paths": paths}, ranks)
        record.write(study.record_folder, own.name)
    return lost
