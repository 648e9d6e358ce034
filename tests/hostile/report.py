# SPDX-License-Identifier: Apache-2.0
"""What a run of hostile requests has seen, as a page."""

from collections import Counter
from pathlib import Path

from tests.hostile.grammar import Grammar
from tests.hostile.sending import MIB, Seen

MOST_MEMORY_ROWS = 24


def write_report(folder: Path, seen: Seen, grammar: Grammar, command: str) -> Path:
    """Write ``report.md`` into a folder.

    Args:
        command: that sends one request again, with a place for its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.md"
    statuses = sorted({status for _, status in seen.answers})
    total = sum(seen.answers.values())
    lines = [
        "# Hostile requests",
        "",
        f"{total} hostile and {seen.num_valid} valid requests in "
        f"{seen.seconds:.0f} s; {len(seen.faults)} faults; slowest answer "
        f"{seen.slowest[1]:.1f} s (request {seen.slowest[0]}); worst /health "
        f"{seen.worst_health * 1000:.0f} ms of {len(seen.health)}; memory of the "
        f"server in the last quarter {seen.memory_growth:+.1%} over the third.",
        "",
        "Status 0 is a client that went away, -1 a connection that broke.",
        "",
        "| kind | " + " | ".join(map(str, statuses)) + " |",
        "| --- |" + " --: |" * len(statuses),
    ]
    for kind in sorted({kind for kind, _ in seen.answers}):
        counts = [seen.answers[kind, status] for status in statuses]
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "## Memory", "", "| s | MiB |", "| --: | --: |"]
    stride = max(1, len(seen.memory) // MOST_MEMORY_ROWS)
    lines += [f"| {at:.0f} | {size // MIB} |" for at, size in seen.memory[::stride]]
    lines += ["", "## Faults", ""]
    alike = Counter(fault[:60] for _, fault in seen.faults)
    lines += [f"- {count} times: {fault!r}" for fault, count in alike.most_common()]
    lines += [""]
    for number, fault in seen.faults:
        if number < 0:
            lines.append(f"- {fault}")
            continue
        request = grammar.request(number)
        lines.append(
            f"- `{command.format(number)}`: {request.method} {request.path[:60]} "
            f"({request.kind}: {request.what[:120]!a}): {fault!a}"
        )
    page.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return page
