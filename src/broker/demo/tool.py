"""Run a tool of the laboratory: `python -m broker.demo.tool NAME URL`."""

import sys
from pathlib import Path
from typing import Any

from broker.client import Job, Tool
from broker.demo.analyses import ANALYSES, load_image

SKILLS: dict[str, dict[str, Any]] = {
    "cell-lab": {
        "analysis": ["count_cells", "segment_stain", "count_nuclei"],
        "modality": ["phase", "histology"],
        "stain": ["DAB"],
    },
    "eye-clinic": {"analysis": ["measure_vessels", "locate_disc", "find_lesions"], "modality": ["fundus"]},
    "observatory": {"analysis": ["find_sources", "find_craters"], "modality": ["sky"]},
    "reading-room": {"analysis": ["measure_layout", "threshold_page"], "modality": ["document"]},
    "photo-bench": {
        "analysis": ["count_coins", "measure_grains", "measure_texture", "measure_outline"],
        "modality": ["photo"],
    },
}


def main(name: str, url: str) -> None:
    """Run the tool until SIGTERM or Ctrl-C."""
    tool = Tool(name, SKILLS[name], url=url)

    @tool.handler
    def analyse(job: Job) -> Any:
        image = load_image(Path(job.payload["file"]))
        return ANALYSES[job.needs["analysis"]](image, job.report)

    tool.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
