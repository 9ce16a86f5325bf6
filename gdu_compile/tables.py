"""Results as tables for people (rich); the same facts as the JSON."""

from __future__ import annotations

import sys
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.table import Table

from gdu_compile.printable import printable
from gdu_compile.report import WRONG_SLOTS, ForwardCheck, MemoryCheck, OriginalCheck, Report


def console() -> Console:
    """Standard output; what is piped into a file is not folded at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=False, highlight=False)


def escape(text: str) -> str:
    """Text from a file: neither markup nor control characters."""
    return markup.escape(printable(text))


def say(console: Console, line: str) -> None:
    """One line of text, never folded."""
    console.print(line, soft_wrap=True)


def new_table(*columns: str, title: str | None = None) -> Table:
    """A plain table; columns that begin with > are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def number(value: float | None) -> str:
    """A measured number, short."""
    return "–" if value is None else f"{value:.4g}"


def yes(flag: bool) -> str:
    """A verdict in one word."""
    return "[green]yes[/]" if flag else "[red]no[/]"


def print_report(report: Report, console: Console) -> None:
    """The table at the end of compile, train and verify."""
    if report.weights:
        console.print(weights_table(report))
        console.print(checks_table(report))
    if report.digits_why is not None:
        say(console, f"digits   {report.digits}: {escape(report.digits_why)}")
    if report.why is not None:
        for line in report.why:
            say(console, f"  {escape(line)}")
    for skipped in report.skipped:
        say(console, f"skipped  {escape(skipped['name'])}: {escape(skipped['reason'])}")
    for warning in report.warnings:
        say(console, f"[yellow]warning[/]  {escape(warning)}")
    for kind, path in report.files.items():
        if path is not None and not (report.command != "compile" and kind == "extended"):
            say(console, f"{kind:<9}{escape(path)}")
    say(console, verdict(report))


def weights_table(report: Report) -> Table:
    """One row a weight."""
    table = new_table("weight", ">elements", "dtype", "bit-equal", ">max ULP",
                      ">digit error", ">head-room")  # fmt: skip
    for row in report.weights:
        room = "–" if row.headroom_bits is None else f"{row.headroom_bits:.1f} bits"
        where = "" if row.bit_equal or row.worst is None else f" at {row.worst}"
        table.add_row(
            escape(row.name), str(row.elements), row.dtype, yes(row.bit_equal),
            str(row.max_ulp), number(row.digit_error) + escape(where), room,
        )  # fmt: skip
    return table


def checks_table(report: Report) -> Table:
    """The other checks."""
    table = new_table("check", "result", "measured")
    for check in (report.forward, report.forward_unoptimized):
        if check is not None:
            table.add_row(forward_label(check), yes(check.bit_equal),
                          f"max |difference| {number(check.max_abs_diff)}, "
                          f"{check.samples} samples")  # fmt: skip
    if report.torch is not None:
        own = report.torch.own_run_diff
        table.add_row("torch agrees with onnxruntime", yes(report.torch.agrees),
                      f"relative {number(report.torch.max_relative_diff)}, "
                      f"tolerance {number(report.torch.tolerance)}"
                      + ("" if own is None else ", at onnxruntime's weights; at those that torch "
                         f"computes {number(own)}"))  # fmt: skip
    if report.steps is not None:
        table.add_row("armed", yes(report.armed_at_step is not None), armed_at(report))
        gradient = report.gradient_after_arming
        table.add_row("gradient 0 after arming", "–" if gradient is None else yes(gradient == 0),
                      number(gradient))  # fmt: skip
    for control in report.negative_controls:
        table.add_row(f"control fails: {control.name}", yes(not control.reproduced), "")
    if report.memory is not None:
        memory_rows(table, report.memory)
    if report.algorithm is not None:
        table.add_row("weights are the algorithm's", yes(report.algorithm.bit_equal_to_oracle_run),
                      escape(report.algorithm.name))  # fmt: skip
    if report.original is not None:
        original_rows(table, report.original)
    if report.accuracy is not None:
        facts = report.accuracy
        shares = ", ".join(f"{who} {facts[who]:.2%}" for who in ("base", "oracle", "trained"))
        what = f"{facts['samples']} held-out samples" if facts["held_out"] else "the data"
        table.add_row(f"accuracy on {what}", "", shares)
    return table


def original_rows(table: Table, original: OriginalCheck) -> None:
    """The algorithm in PyTorch."""
    table.add_row("a step is PyTorch's", yes(True),
                  f"relative {number(original.step_difference)} of its change")  # fmt: skip
    vague = f"; not comparable: {', '.join(original.vague)}" if original.vague else ""
    share = "" if original.accuracy is None else f"; PyTorch's accuracy {original.accuracy:.2%}"
    table.add_row(f"PyTorch agrees after {original.steps} steps", yes(original.agrees),
                  f"relative {number(original.max_relative_diff)}, measured tolerance "
                  f"{number(original.tolerance)}{escape(vague)}{share}")  # fmt: skip


def armed_at(report: Report) -> str:
    """When the network was armed."""
    if report.armed_at_step is None:
        return f"not in {report.steps} steps"
    if report.armed_at_step == 0:
        return "before the first step"
    return f"at step {report.armed_at_step} of {report.steps}"


def memory_rows(table: Table, memory: MemoryCheck) -> None:
    """What the memory of learn holds."""
    room = "" if memory.headroom_bits is None else f", head-room {memory.headroom_bits:.1f} bits"
    wrong = f", wrong slots {', '.join(map(str, memory.wrong))}" if memory.wrong else ""
    wrong += " …" if len(memory.wrong) == WRONG_SLOTS else ""
    table.add_row(
        "memory is the training set", yes(memory.bit_equal and memory.labels_equal),
        f"{memory.filled} of {memory.slots} slots, digit error {number(memory.digit_error)}"
        f"{room}{wrong}",
    )  # fmt: skip
    tried = (("another order gives that order", memory.permuted_order),
             ("changed data change their slots only", memory.changed_slots_only))  # fmt: skip
    for what, held in tried:
        if held is not None:
            table.add_row(what, yes(held), "")


def forward_label(check: ForwardCheck) -> str:
    """What the forward check compared."""
    return f"outputs bit-equal, optimisations: {check.optimization}"


def verdict(report: Report) -> str:
    """The last line."""
    if report.reproduced is None:
        return "[bold]not confirmed[/] (nothing was trained)"
    how = settings(report)
    if report.armed_at_step == 0:
        how = f"by an earlier training; nothing was recorded {how}"
    if report.reproduced:
        return f"[bold green]reproduced[/] {how}"
    return f"[bold red]not reproduced[/] {how}"


def settings(report: Report) -> str:
    """How it was trained, in one phrase."""
    data = report.data or {}
    kind = "synthetic " if data.get("kind") == "synthetic" else ""
    what = f"on {data.get('samples')} {kind}samples"
    if report.optimizer is None:
        return f"({what})"
    return escape(f"by {report.optimizer}, lr {report.learning_rate}, batches of "
                  f"{report.batch_size}, {what}, {report.device}")  # fmt: skip


def print_plan(report: Report, console: Console) -> None:
    """The passes, for --dry-run and -v."""
    table = new_table("pass", ">ms", "what it did")
    for row in report.passes:
        did = ", ".join(f"{count} {what}" for what, count in row.counts.items())
        table.add_row(row.name, f"{row.seconds * 1e3:.1f}", did)
    console.print(table)
    size = report.bytes
    say(console, f"bytes    base {size['base']}, extended {size['extended']}")


def print_inspection(facts: dict[str, Any], console: Console) -> None:
    """The tables of ``inspect``."""
    say(console, f"{escape(facts['model'])}: opset {facts['opset']}, {facts['bytes']} bytes")
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            line = f"{kind[:-1]:<8}{value['name']} {value['dtype']} {value['shape']}"
            say(console, escape(line))
    operators = ", ".join(f"{count} {name}" for name, count in facts["operators"].items())
    say(console, escape(f"nodes   {operators}"))
    table = new_table("initializer", "dtype", "shape", ">elements", ">uses")
    for row in facts["weights"]:
        table.add_row(escape(row["name"]), row["dtype"], escape(str(row["shape"])),
                      str(row["elements"]), str(row["uses"]))  # fmt: skip
    console.print(table)
    print_other_weights(facts, console)
    say(console, escape(f"logits  {facts['logits']['name']}: {facts['logits']['why']}"))
    extension = facts["extension"]
    if extension is None:
        found = f"[yellow]{len(facts['switches'])} switches on constants[/]: an extension without "\
                "metadata?" if facts["switches"] else "none"  # fmt: skip
        say(console, f"extension  {found}")
        return
    state = "armed (trained)" if extension["armed"] else "not armed (untrained)"
    say(
        console,
        escape(
            f"extension  {extension['method']}, {extension['digits']}, gain "
            f"{extension['gain']:.4g}, by gdu-compile {extension['version']}; {state}"
        ),
    )
    for bucket in extension["buckets"]:
        say(console, escape(f"θ  {bucket['theta']} {bucket['shape']}: "
                             f"{', '.join(bucket['weights'])}"))  # fmt: skip
    if extension["memory"] is not None:
        print_memory(extension, console)


def print_other_weights(facts: dict[str, Any], console: Console) -> None:
    """What an oracle may name besides the initializers, and the single uses of shared weights."""
    if facts["other_weights"]:
        table = new_table("other weight", "dtype", "shape", ">elements", "source")
        for row in facts["other_weights"]:
            table.add_row(escape(row["name"]), row["dtype"], escape(str(row["shape"])),
                          str(row["elements"]), escape(row["source"]))  # fmt: skip
        console.print(table)
    for row in [*facts["weights"], *facts["other_weights"]]:
        if row["places"]:
            say(console, escape(f"shared  {row['name']}, each use with --untie: "
                                 f"{', '.join(row['places'])}"))  # fmt: skip
    for row in facts["attributes"]:
        say(console, escape(f"stays   {row['name']}: {row['reason']}"))


def print_memory(extension: dict[str, Any], console: Console) -> None:
    """The memory and the algorithm of learn, for ``inspect``."""
    memory, algorithm = extension["memory"], extension["algorithm"]
    for theta in memory["thetas"]:
        say(console, escape(f"θ  {theta['theta']} {theta['shape']}"))
    fields = ", ".join(f"{f['name']} {f['dtype']} {list(f['shape'])}" for f in memory["fields"])
    say(console, escape(f"memory     {memory['filled']} of {memory['slots']} samples: {fields}"))
    weights = ", ".join(weight["name"] for weight in algorithm["weights"])
    say(console, escape(f"algorithm  {algorithm['name']} computes {weights}"))
