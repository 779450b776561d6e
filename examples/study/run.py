"""Run a form of the study: prepare its data, train MEND, sweep every part with every seed, collect the cells.

    python -m examples.study.run --data FOLDER            # the reduced form, two sweeps at a time
    python -m examples.study.run --form full --jobs 1     # with the hub's data, on a GPU

Killed, it goes on where it was: sweeps keep their cells, training its checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import yaml

from lm_eval_edit._support.files import read_json, sha256, write_bytes, write_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.plots.picture import drawing

from .collect import collect, only_cells_in
from .design import FILE, RESULTS, ROOT, Form, Work, form
from .prepare import prepare

#: The commands that run now, to be ended with this one.
_running: set[subprocess.Popen[bytes]] = set()


def command(*words: str) -> list[str]:
    """A command of lm-eval-edit, by this interpreter."""
    return [sys.executable, "-m", "lm_eval_edit", *words]


def called(words: list[str], log: Path) -> int:
    """Run a command, what it says going to a file; its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out, subprocess.Popen(words, stdout=out, stderr=out) as running:
        _running.add(running)
        try:
            return running.wait()
        finally:
            _running.discard(running)


def train(this: Form, work: Work) -> None:
    """Train MEND's hypernetwork, unless it is there.

    Raises:
        UserError: it could not be trained.
    """
    settings, mark = dict(this.numbers["mend"]), work.archive.with_suffix(".done.json")
    wanted: dict[str, Any] = {
        "settings": settings,
        "model": this.study["model"],
        "facts": sha256(work.training_facts.read_bytes()),
    }
    if mark.is_file() and work.archive.is_file() and read_json(mark) == wanted:
        return
    args = [f"pretrained={this.study['model']}", f"edit_dataset={work.training_facts}"]
    args += [f"{name}={value}" for name, value in this.study["model_args"].items()]
    words = command("train", "mend", "-o", str(work.archive), "--model_args", *args)
    words += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    log = work.folder / "mend.log"
    if called(words, log):
        raise UserError(f"MEND could not be trained; {log} says why")
    write_json(mark, wanted)


def sweep(this: Form, work: Work, part: str, seed: int, data: str | None) -> int:
    """One sweep; its exit status."""
    file = work.folder / f"{part}-seed{seed}.yaml"
    design = this.sweep_design(part, seed, work, data)
    write_bytes(file, yaml.safe_dump(design, sort_keys=False, allow_unicode=True).encode())
    return called(command("sweep", str(file), "-o", str(work.sweep(part, seed))), file.with_suffix(".log"))


def run(this: Form, work: Work, data: str | None, jobs: int, results: Path) -> int:
    """Everything; the exit status is 1 if any sweep failed or was killed.

    Then no cells are replaced by fewer: what there is is collected only where none are and the page is not made from.
    """
    started = time.time()
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    work.folder.mkdir(parents=True, exist_ok=True)
    prepare(this, work, data)
    with ThreadPoolExecutor(jobs) as pool:  # begins what is given to it in this order
        try:
            statuses = _statuses(this, work, data, pool)
        except BaseException:  # interrupted: what runs is ended, and what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            for running in tuple(_running):
                running.terminate()
            raise
    for (part, seed), status in statuses.items():
        if status:
            print(f"{part}, seed {seed}: exit status {status}; {work.folder / f'{part}-seed{seed}.log'} says why")
    _note(work, time.time() - started)
    failed = any(statuses.values())  # a signal's are below 0
    stored = results.resolve() == (RESULTS / this.name).resolve() or (results / "cells.json").is_file()
    if failed and stored:
        print(
            f"{results} stays as it is; run the command again to go on, or give --results a new folder for the cells "
            f"so far"
        )
    else:
        collect(this, work, results)
    return 1 if failed else 0


def _statuses(this: Form, work: Work, data: str | None, pool: ThreadPoolExecutor) -> dict[tuple[str, int], int]:
    """The exit status of each sweep. What is trained comes first, so that in the end nothing waits for it."""
    training = pool.submit(train, this, work) if any(this.trained(part) for part in this.parts) else None

    def with_trained(part: str, seed: int) -> int:
        assert training is not None, "it was begun before"
        try:
            training.result()
        except UserError as error:
            print(f"{part}, seed {seed}: {error}")
            return 1
        return sweep(this, work, part, seed, data)

    waiting = {each: pool.submit(sweep, this, work, *each, data) for each in this.sweeps if not this.trained(each[0])}
    waiting |= {each: pool.submit(with_trained, *each) for each in this.sweeps if this.trained(each[0])}
    return {each: future.result() for each, future in waiting.items()}


def _note(work: Work, wall: float) -> None:
    """What this start took, beside earlier ones of the same folder that came to their end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    line = {
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(sum(each.ru_utime + each.ru_stime for each in (used, own)), 1),
    }
    with (work.folder / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="a folder with the public data sets' files; default: the hub")
    parser.add_argument("--form", default="reduced", help="reduced (default) or full")
    parser.add_argument("--design", type=Path, default=FILE, help="default: examples/study/study.yaml")
    parser.add_argument("--out", type=Path, help="the folder to work in; default: build/study/FORM")
    parser.add_argument("--results", type=Path, help="where the cells are collected; default: beside this file")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at a time (default: 2)")
    given = parser.parse_args(argv)
    data = None if not given.data else str(Path(given.data).resolve())
    try:
        if given.jobs < 1:
            raise UserError(f"--jobs {given.jobs}: it is how many sweeps run at a time, 1 or more")
        if given.design.resolve() != FILE and not (given.out and given.results):
            raise UserError("--design of another study: give it an --out and --results of its own")
        this = form(given.form, given.design)
        work = Work((given.out or ROOT / "build" / "study" / this.name).resolve())
        results = given.results or RESULTS / this.name
        with drawing():  # what the page needs in the end is asked for before the hours
            only_cells_in(results)
        return run(this, work, data, given.jobs, results)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the sweeps end too
    sys.exit(main())
