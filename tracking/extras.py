"""Which command installs a package that is not there: those of the extras in pyproject.toml are not needed by all."""

EXTRAS = {"flwr": "flower", "ray": "flower", "submitit": "sweeps", "wandb_workspaces": "dashboards"}


def installed_by(package: str) -> str:
    """What brings the package, as a command where it is one of an extra."""
    extra = EXTRAS.get(package.partition(".")[0])
    return "install it" if extra is None else f"pip install -c constraints.txt -e '.[{extra}]'"
