"""Generate the reference page about alerts."""

import yaml

from tests import ROOT
from tests.support.reference import layout

_RULES = ROOT / "containers" / "prometheus" / "alerts.yml"


def page() -> str:
    """Return the reference page about alerts, as Markdown."""
    groups = yaml.safe_load(_RULES.read_text())["groups"]
    return layout.page(
        "Alerts",
        "These are the alert rules of `containers/prometheus/alerts.yml`. The severity `page` means that"
        " people are waiting now. The severity `ticket` means that somebody must look at it today.",
        *(
            section
            for group in groups
            for section in (f"## {group['name']}", *(_rule(rule) for rule in group["rules"]))
        ),
    )


def _rule(rule: dict[str, object]) -> str:
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    labels = rule["labels"]
    assert isinstance(labels, dict)
    holds = f" The condition must hold for {rule['for']}." if "for" in rule else ""
    return "\n\n".join(
        [
            f"### {rule['alert']}",
            f"**{annotations['summary'].strip()}** Severity: `{labels['severity']}`.{holds}",
            annotations["reason"].strip(),
            f"Look at: {annotations['look_at'].strip()}",
            f"```text\n{str(rule['expr']).strip()}\n```",
        ]
    )
