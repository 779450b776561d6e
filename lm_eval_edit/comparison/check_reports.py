"""What a gate leaves behind for people and machines: a markdown summary and JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

from lm_eval_edit._support.terminal import one_line, printable
from lm_eval_edit.comparison.check import PASS, REGRESSION, STATUS, Finding, Report
from lm_eval_edit.comparison.floors import AT_FLOOR
from lm_eval_edit.comparison.tables import interval, markdown_table, number, p_value

_WORDS = {PASS: "✅ pass", REGRESSION: "❌ regression"}
_OPEN = "⚠️ inconclusive"


def _word(finding: Finding) -> str:
    return _WORDS.get(finding.status, _OPEN) if finding.shows else f"– {AT_FLOOR}"


def markdown(report: Report) -> str:
    """The summary of a gate, for a pull request or `$GITHUB_STEP_SUMMARY`."""
    head = f"## lm-eval-edit check: {STATUS[report.status]}"
    parts = [head]
    if report.error:
        parts.append(f"**Unusable input.** {report.error}")
    if report.comparison:
        parts.append(one_line(f"{report.comparison.base.label} → {report.comparison.edited.label}"))
    tasks = [
        (
            row.task, row.metric, str(row.n), number(row.base), number(row.edited),
            f"{number(row.difference.value, sign=True)} {interval(row.difference.low, row.difference.high)}",
            number(row.delta), p_value(row.p_holm), _word(finding),
        )
        for finding in report.findings
        if (row := finding.row) is not None
    ]  # fmt: skip
    if tasks:
        columns = ("task", "metric", "n", "baseline", "current", "difference", "allowed drop", "p (Holm)", "")
        parts.append(markdown_table(columns, tasks))
    floors = [
        (finding.name, finding.detail, _WORDS[finding.status]) for finding in report.findings if finding.row is None
    ]
    if floors:
        parts.append(markdown_table(("floor", "", ""), floors))
    told = [finding for finding in report.findings if finding.status != PASS or not finding.shows]
    remarks = [f"- {one_line(f'{finding.name}: {finding.detail}')}" for finding in told]
    remarks += [f"- {one_line(notice)}" for notice in report.notices]
    if remarks:
        parts.append("\n".join(remarks))
    return printable("\n\n".join(parts)) + "\n"


def junit(report: Report) -> bytes:
    """The report as JUnit XML: a regression is a failure, what is inconclusive or unusable is an error."""
    findings = report.findings
    failures = sum(finding.status == REGRESSION for finding in findings)
    errors = sum(finding.status not in (PASS, REGRESSION) for finding in findings) + (report.error is not None)
    suite = ElementTree.Element(
        "testsuite",
        name="lm-eval-edit check",
        tests=str(len(findings) + (report.error is not None)),
        failures=str(failures),
        errors=str(errors),
    )
    for finding in findings:
        name, detail = one_line(finding.name), one_line(finding.detail)  # XML has no room for controls, escaped or not
        case = ElementTree.SubElement(suite, "testcase", classname="lm-eval-edit.check", name=name)
        if finding.status == PASS:
            ElementTree.SubElement(case, "system-out").text = detail
        else:
            kind = "failure" if finding.status == REGRESSION else "error"
            ElementTree.SubElement(case, kind, message=detail)
    if report.error is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="lm-eval-edit.check", name="input")
        ElementTree.SubElement(case, "error", message=printable(report.error))
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
