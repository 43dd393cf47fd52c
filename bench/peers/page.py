# SPDX-License-Identifier: Apache-2.0
"""The page and the plots, of the results' files that are there."""

import json

from . import figures
from .kinds import KINDS
from .plot import Bar, bar_chart, number

INTRODUCTION = """\
# Results

Made by `./bench.sh` ([how](../README.md#every-way-of-checkpointing)); do not edit. Medians of the rounds, in brackets the least and the largest; all ways of one table took turns with the same guest. Raw figures of each round are in the JSON files beside this page. Compare within a table: another guest, another hour or another machine gives other figures.

- **pause**: the guest stood still, by QEMU's own STOP and RESUME events, all of it that the way caused.
- **durable**: until the command was done and what it made had been synced.
- **MB**: blocks that the files take of the disk, 10^6 bytes. **/used**: to what the guest said that it used (MemTotal - MemFree); **/not free**: to all that it was given, less MemFree, which has the kernel's own in it.
- **CPU**: of all helper processes, and of QEMU without its vCPUs.
- **memory, MB**: the largest helper process; QEMU's growth; growth of the host's page cache.
- **speed**: the guest's work from the way's start until it was durable, at least 3 s, pauses included, to its work in the 2.5 s before.
- **of the disk**: bytes written to what the disk would have taken in the same time, by the rate measured between the rounds.
"""


def cell(value, form=number):
    return "" if value is None else form(value)


def percent(value):
    return f"{100 * value:.0f} %"


def with_range(way, name):
    found = figures.values(way["rounds"], name)
    if not found:
        return ""
    middle = number(figures.median(way["rounds"], name))
    return middle if len(found) == 1 else f"{middle} ({number(min(found))}-{number(max(found))})"


def megabytes(way, name):
    return cell(figures.median(way["rounds"], name), lambda value: number(value / 1e6))


def gigabytes(value):
    return number(value / 1e9)


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


# ---- tables ----------------------------------------------------------------

def taken(setting):
    return {name: way for name, way in setting["ways"].items() if way["rounds"]}


def figures_table(setting):
    rows = []
    for way in taken(setting).values():
        memory = "; ".join(megabytes(way, name) or "0" for name in (
            "helpers_peak_bytes", "qemu_growth_bytes", "page_cache_growth_bytes"))
        rows.append([way["title"], with_range(way, "pause_ms"), with_range(way, "durable_ms"), megabytes(way, "bytes"),
                     cell(figures.per(way, "used_bytes")), cell(figures.per(way, "not_free_bytes")),
                     cell(figures.median(way["rounds"], "cpu_s")), memory,
                     cell(figures.median(way["rounds"], "speed_ratio"), percent),
                     cell(figures.nearness(setting, way), percent)])
    heads = ["way", "pause, ms", "durable, ms", "MB", "/used", "/not free", "CPU, s", "memory, MB", "speed", "of the disk"]
    return table(heads, rows)


def ratios_table(setting):
    names = ("pause_ms", "durable_ms", "bytes", "cpu_s")
    references = {name: figures.references(setting, name) for name in names}
    rows = []
    for way in taken(setting).values():
        cells = [way["title"]]
        for name in names:
            value = figures.median(way["rounds"], name)
            told = [cell(figures.ratio(value, reference), number) or "-" for reference in references[name]]
            cells.append(" / ".join(told))
        rows.append(cells)
    return table(["way", "pause", "durable", "bytes", "CPU"], rows)


def restores_table(setting):
    rows = []
    for told in setting["restores"].values():
        if not told["rounds"]:
            continue
        way = setting["ways"][told["way"]]
        rows.append([restored_title(way, told), with_range(told, "answer_ms"), with_range(told, "complete_ms"),
                     cell(figures.median(told["rounds"], "empty_ms"))])
    return table(["restored from", "answers, ms", "all memory there, ms", "an empty start, ms"], rows) if rows else ""


def notes(setting):
    lines = []
    for way in setting["ways"].values():
        if way.get("not_there"):
            lines.append(f"- {way['title']}: not there: {way['not_there']}")
        lines += [f"- {way['title']}: failed: {words}" for words in way["failed"]]
        if way["note"] and way["rounds"]:
            lines.append(f"- {way['title']}: {way['note']}.")
    for name, told in setting["restores"].items():
        lines += [f"- restore of {name}: failed: {words}" for words in told["failed"]]
        if "not_there" in told:
            lines.append(f"- restore of {name}: not there: {told['not_there']}")
    lines += [f"- the guest was lost and booted anew: {words}" for words in setting.get("lost", [])]
    return "".join(f"{line}\n" for line in (" ".join(line.split()) for line in lines))


# ---- a guest's section -----------------------------------------------------

def setting_section(setting):
    if "not_there" in setting or "failed" in setting:
        reason = setting.get("not_there") or setting.get("failed")
        head = f"### {setting.get('title', '?')}\n\n{'Not there' if 'not_there' in setting else 'Failed'}: {reason}\n"
        if not any(way["rounds"] for way in setting.get("ways", {}).values()):
            return head
    else:
        head = f"### {setting['title']}\n"
    disk, memory = (figures.limit(setting, name) for name in ("disk_bytes_per_s", "memory_bytes_per_s"))
    first = next(iter(taken(setting).values()), None)
    used = megabytes(first, "used_bytes") if first else ""
    told = (f"{setting.get('rounds', '?')} rounds. The guest said that it used {used or '?'} MB. The disk took "
            f"{cell(disk, gigabytes)} GB/s (O_DIRECT, durable), one core copied {cell(memory, gigabytes)} GB/s of memory.\n")
    lines = [head, told,
             figures_table(setting),
             "To QEMU's plain `migrate` / to the best of its newer modes / to `vmsieve save --live`:\n",
             ratios_table(setting)]
    restored = restores_table(setting)
    if restored:
        lines += ["Brought back, files read from the disk; an empty start is of QEMU alone, with `-S`:\n", restored]
    lines.append(notes(setting))
    return "\n".join(line for line in lines if line)


def group(results, key):
    """Words over a setting's bars; the first one's need none."""
    return "" if key == next(iter(results["settings"])) else results["settings"][key]["title"]


def bars(results, name, scale):
    made = []
    for key, setting in results["settings"].items():
        for way in taken(setting).values() if "ways" in setting else ():
            found = figures.values(way["rounds"], name)
            if found:
                made.append(Bar(group(results, key), way["title"], figures.median(way["rounds"], name) * scale,
                                min(found) * scale, max(found) * scale, way["ours"]))
    return made


def restore_bars(results, name):
    made = []
    for key, setting in results["settings"].items():
        for told in setting.get("restores", {}).values():
            found = figures.values(told["rounds"], name)
            if found:
                way = setting["ways"][told["way"]]
                made.append(Bar(group(results, key), restored_title(way, told), figures.median(told["rounds"], name),
                                min(found), max(found), way["ours"]))
    return made


def restored_title(way, told):
    return way["title"] + (f", {told['how']}" if told["how"] else "")


PLOTS = (("pause_ms", 1, "guest stopped", "ms"), ("durable_ms", 1, "until durable", "ms"),
         ("bytes", 1e-6, "on the disk", "MB"), ("cpu_s", 1, "CPU time", "s"))


def plots(folder, results):
    """Links to those that were made."""
    made = []
    for name, scale, title, unit in PLOTS:
        made.append((f"{results['name']}-{name.split('_')[0]}.svg", f"{results['name']}: {title}", unit,
                     bars(results, name, scale)))
    made.append((f"{results['name']}-restore.svg", f"{results['name']}: restored, until the guest answers", "ms",
                 restore_bars(results, "answer_ms")))
    links = []
    for file, title, unit, those in made:
        (folder / file).unlink(missing_ok=True)
        if those:
            bar_chart(folder / file, title, unit, those)
            links.append(f"![{title}]({file})")
    return "\n\n".join(links) + "\n" if links else ""


def section(folder, results):
    versions = ", ".join(f"{name} {text}" if name == "vmsieve" else text for name, text in results["versions"].items()
                         if text and name in ("commit", "vmsieve"))
    machine = results["machine"]
    return "\n".join([
        f"## {results['name']}\n",
        f"{results['mem_mib']} MiB; {results['title']}. {results['started']}, {machine['cores']} "
        f"cores ({machine['cpu']}), {machine['memory_bytes'] / 2**30:.0f} GiB, Linux {machine['kernel']}, "
        f"{machine['disk'].split()[0] if machine['disk'] else '?'}; {versions}.\n",
        plots(folder, results),
        *(setting_section(setting) for setting in results["settings"].values())])


def summary(all_results):
    """One row for each kind of guest: ours beside QEMU's."""
    rows = []
    for results in all_results:
        setting = next(iter(results["settings"].values()), None)
        if not setting or "ways" not in setting:
            continue
        cells = [results["name"]]
        for name, scale in (("pause_ms", 1), ("durable_ms", 1), ("bytes", 1e-6)):
            cells.append(" / ".join(cell(value, lambda v, s=scale: number(v * s)) or "-"
                                    for value in figures.references(setting, name)))
        increments = setting["ways"].get("incremental", {"rounds": []})
        cells.append(" / ".join(cell(figures.median(increments["rounds"], name), lambda v, s=scale: number(v * s)) or "-"
                                for name, scale in (("pause_ms", 1), ("durable_ms", 1), ("bytes", 1e-6))))
        rows.append(cells)
    return ("\nQEMU's plain `migrate` of the stopped guest / the best of its newer modes, by each figure / `vmsieve save` "
            "(live, zstd):\n\n" +
            table(["guest", "pause, ms", "durable, ms", "MB", "an increment: pause, durable, MB"], rows)) if rows else ""


def write(folder):
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    found = {name: results for name, results in found.items() if "settings" in results}  # growth.json has none
    order = [name for name in KINDS if name in found] + [name for name in found if name not in KINDS]
    all_results = [found[name] for name in order]
    text = INTRODUCTION + summary(all_results) + "\n" + "\n".join(section(folder, results) for results in all_results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
