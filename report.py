"""Records -> a report: `python report.py name=ntu60` writes reports/ntu60.md."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tracking import records, report
from tracking.doors import door

CONF = Path(__file__).parent / "conf"


@door("report", expected=(), conf=CONF)
def main(config: DictConfig) -> dict:
    """Gather the records of data set `config.name` and write its report; returns the path and how many there were."""
    found = [one for one in records.find(Path(config.records)) if one.config["data"]["name"] == config.name]
    targets = CONF / "targets" / f"{config.name}.yaml"
    published: Any = OmegaConf.to_container(OmegaConf.load(targets)) if targets.exists() else {}
    path = report.write(found, published, config.name, Path(config.paths.reports))
    return {"report": str(path), "records": len(found)}


if __name__ == "__main__":
    main()
