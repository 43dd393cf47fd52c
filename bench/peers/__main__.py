# SPDX-License-Identifier: Apache-2.0
"""Every way of checkpointing on the same guest, in turns: bench/README.md."""

import argparse
import json
import pathlib
import shutil
import signal
import sys
import tempfile

from . import host, page, plan
from .kinds import KINDS
from .rounds import Rounds, say
from .subject import end_processes_of

RESULTS = host.ROOT / "bench" / "results"


PLACES = ("store", "qmp", "log")  # where things were on this machine, as vmsieve tells it


def without_places(value):
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items() if key not in PLACES}
    if isinstance(value, str):  # a warning, a disk's file
        return value.replace(f"{host.ROOT}/", "")
    return [without_places(one) for one in value] if isinstance(value, list) else value


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".made")
    made.write_text(json.dumps(without_places(results), indent=1) + "\n", encoding="utf-8")
    made.rename(path)


def earlier(path, results):
    """The settings of a results' file of the same commit, machine and guest; those of another have no place beside these."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}

    def same(of):
        machine = {key: value for key, value in of["machine"].items() if key != "load_before"}
        return of["mem_mib"], of["versions"]["commit"], machine

    return there["settings"] if same(there) == same(results) else {}


def bench(name, kind, choice, options):
    """One kind of guest, in all its settings; the results' file is written as soon as there is something new."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=host.BUILD))
    path = options.results / f"{name}.json"
    options.restores = choice.restores and not options.no_restore
    qemus = {}
    for part in choice.parts:
        qemus |= part.setting.programs()
    results = {"name": name, "kind": kind, "title": KINDS[kind].title, "mem_mib": options.mem_mib, "started": host.utc(),
               "machine": host.machine(), "versions": host.versions(qemus), "settings": {}}
    if options.setting:
        results["settings"] = earlier(path, results)
    try:
        for part in choice.parts:
            record = results["settings"][part.setting.name] = {"started": host.utc()}
            options.rounds = options.wanted_rounds or choice.rounds
            try:
                Rounds(part, kind, options, folder, record).run()
            except host.NotThere as error:
                record["not_there"] = str(error)
                say(f"   {part.setting.title}: {error}")
            except Exception as error:  # the others are still worth measuring
                record["failed"] = f"{type(error).__name__}: {error}"
                say(f"   {part.setting.title} FAILED: {error}")
            finally:
                results["ended"] = host.utc()
                write(path, results)
                shutil.rmtree(folder / "files", ignore_errors=True)
    finally:
        end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def parse():
    parser = argparse.ArgumentParser(prog="./bench.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three minutes: one guest, the ways that matter most")
    parser.add_argument("--guest", nargs="+", action="extend", choices=KINDS, metavar="KIND", default=[],
                        help=f"{', '.join(KINDS)} (all)")
    parser.add_argument("--way", nargs="+", action="extend", choices=plan.way_names(), metavar="NAME", default=[],
                        help=f"these alone: {', '.join(plan.way_names())}")
    parser.add_argument("--setting", nargs="+", action="extend", choices=plan.setting_names(), metavar="NAME", default=[],
                        help="guests booted so alone, their figures put beside those that the same commit has of others: "
                        f"{', '.join(plan.setting_names())}")
    parser.add_argument("--everything", action="store_true", help="all ways of all guests, not only of some")
    parser.add_argument("--rounds", type=int, dest="wanted_rounds", metavar="N")
    parser.add_argument("--mem-mib", type=int, default=4096, metavar="N")
    parser.add_argument("--no-restore", action="store_true")
    parser.add_argument("--page", action="store_true", help="only make the page and the plots anew")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    host.BUILD.mkdir(exist_ok=True)
    try:
        if options.quick:
            quick = plan.Choice(plan.QUICK, False, rounds=3)
            for kind in options.guest or ["churned"]:
                bench("quick" if kind == "churned" else f"quick-{kind}", kind, quick, options)
        elif not options.page:
            for kind in options.guest or KINDS:
                bench(kind, kind, plan.choice(kind, options.everything, options.way, options.setting), options)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    page.write(options.results)


if __name__ == "__main__":
    main()
