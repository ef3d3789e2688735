"""Records -> a report: `python report.py name=ntu60` writes reports/ntu60.html and reports/ntu60.md."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tracking import artefacts, matrix, page, records, report
from tracking.doors import door

CONF = Path(__file__).parent / "conf"


@door("report", expected=(), conf=CONF)
def main(config: DictConfig) -> dict:
    """Gather the records of data set `config.name` and write its report; returns the paths and how many there were."""
    folder = Path(config.records)
    found = [one for one in records.find(folder) if one.config["data"]["name"] == config.name]
    targets = CONF / "targets" / f"{config.name}.yaml"
    published: Any = OmegaConf.to_container(OmegaConf.load(targets)) if targets.exists() else {}
    text = report.write(found, published, config.name, Path(config.paths.reports), matrix.tables)
    parts = {one.id: artefacts.read(one, folder) for one in found}
    path = page.write(text.read_text(encoding="utf-8"), found, parts, published, text.with_suffix(".html"))
    return {"report": str(path), "tables": str(text), "records": len(found)}


if __name__ == "__main__":
    main()
