"""Train as a federation: `python federate.py experiment=federated/sds_cl_by_camera`.

Launched again it finds the result or goes on after the last complete round, as train.py does after the last epoch.
What is federated is the configuration's `workload`.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.alone import alone_in
from datamodules.errors import InputError
from federated.curves import client_values, curves, unmeasured
from federated.device import Team
from federated.engines.base import Engine
from federated.ledger import Ledger
from federated.lora_reach import lora_reach
from federated.making import configured_device, configured_team, hush, make_resident
from federated.orchestrator import FederatedResult, Metrics, Orchestrator
from federated.privacy import COVERED, public
from federated.schedule import AllClients, SampleClients
from federated.sites import at_sites
from federated.transport import transport
from federated.watch import Watch, loss_of
from federated.workloads.base import Workload
from tracking import identity, loggers, memory, processes, records, showing
from tracking.build import build
from tracking.doors import door
from train import NOT_TRAINED, check_processes, plain, set_aside

REASONS, REASON = 10, 80  # reasons of rejection in a record, and letters of each


@dataclass(frozen=True)
class Run:
    """One federation, whether or not it has been made: its settings, what it federates, key and folder.

    command: that gives it, where it is not this process's.
    """

    config: dict[str, Any]
    workload: Workload
    key: str
    folder: Path
    command: str = ""

    @classmethod
    def of(cls, config: DictConfig, workload: Workload | None = None, command: str = "") -> "Run":
        """The federation that these settings describe; workload: in place of the configured one, for data elsewhere.

        Raises InputError where the data are at sites and none is given.
        """
        if workload is None and at_sites(plain(config)):
            do = "deploy it as docs/deployment.md says, or take another federated/partition"
            raise InputError(f"federation: expected nodes that hold the sites' data, found this process alone: {do}")
        hush(config)
        workload = workload or build(config.workload, config=config)
        trained = copy.deepcopy(
            OmegaConf.masked_copy(config, [str(name) for name in config if name not in NOT_TRAINED])
        )
        trained.federated.evaluate_every = 0  # looking more often changes nothing that is trained
        key = identity.run_key(trained, workload.fingerprint, workload.base_model)
        folder = Path(config.paths.runs) / f"{config.data.name}-{config.name}-{key[:12]}"
        return cls(plain(config), workload, key, folder, command)

    @property
    def lock(self) -> Path:
        """A folder that is there only while a launch of this run is at work."""
        return self.folder.with_name(f"{self.folder.name}.lock")

    @property
    def federated(self) -> dict[str, Any]:
        """The settings of the federation."""
        return self.config["federated"]

    @property
    def manifest(self) -> dict[str, Any]:
        """Who holds what, as far as the run tells it."""
        whole = self.workload.manifest
        return public(whole) if self.federated["privacy"] else whole

    @property
    def withholds_rejected(self) -> bool:
        """Whether what was left out of the raw files is the clients' and they are private: no noise covers it."""
        return bool(self.federated["privacy"]) and "sites" not in self.workload.manifest

    @property
    def rejected(self) -> Sequence[tuple[str, str]] | None:
        """What was left out of the raw files, as far as the run tells it; None where it tells nothing."""
        return None if self.withholds_rejected else self.workload.rejected

    @property
    def described(self) -> str:
        """What the raw files hold and what was rejected of them, in a line as far as the run tells it."""
        if self.workload.described and self.withholds_rejected:
            return "what was rejected of the raw files is the clients', and they are private: prepare.py tells it"
        return self.workload.described

    def record(self, lora: str, **facts) -> records.Record:
        """A record of a result on this run's data, to which `facts` adds what was measured; lora: as `lora_reach`."""
        data, workload = self.config["data"], self.workload
        return records.Record(
            experiment=f"{data['name']}/{self.config['name']}",
            config=identity.unlocated(self.config),
            data={
                "name": f"miniature, not {data['title']}" if workload.miniature else data["title"],
                "fingerprint": workload.fingerprint,
                "miniature": workload.miniature,
                "split": data["split"],
                "counts": dict(workload.counts),
                **({"base_model": workload.base_model} if workload.base_model else {}),
                **({} if self.rejected is None else {"rejected": by_reason(self.rejected)}),
                **({"lora": lora} if lora else {}),
                **{name: self.manifest[name] for name in ("server", "sites") if name in self.manifest},
            },
            seeds={"seed": self.config["seed"]},
            **({"command": self.command} if self.command else {}),
            **facts,
        )


def by_reason(rejected: Sequence[tuple[str, str]]) -> dict[str, int]:
    """How many files or samples were left out for each of the commonest reasons, details apart, and for others."""
    counted = Counter(reason.partition(":")[0][:REASON] for _, reason in rejected)
    common = dict(counted.most_common(REASONS))
    others = counted.total() - sum(common.values())
    return common | ({"other reasons": others} if others else {})


def federation(run: Run, engine: Engine | None = None) -> Orchestrator:
    """The round loop of these settings, its ledger in the run's folder; engine: in place of the configured one."""
    settings, workload = run.federated, run.workload
    if settings["rounds"] < 0 or settings["epochs"] < 1:
        found = f"{settings['rounds']} rounds of {settings['epochs']} epochs"
        raise InputError(f"federation: expected rounds of 0 or more and epochs of 1 or more, found {found}")
    device = "cpu" if engine else None  # clients that are elsewhere have devices of their own
    resident, per_round = make_resident(run.config, workload, device), settings["per_round"]
    engine = engine or build(settings["engine"], client=resident.client, config=run.config)
    if settings.get("secure_aggregation") and not engine.secure:
        raise InputError("secure aggregation: expected messages between nodes: set federated/engine=flower")
    return Orchestrator(
        resident.module,
        resident.adapter,
        engine,
        build(settings["strategy"]),
        clients=len(workload.manifest["sizes"]),
        rounds=settings["rounds"],
        seed=run.config["seed"],
        sample=AllClients() if per_round is None else SampleClients(per_round),
        rate=workload.rate,
        evaluate=workload.evaluate,
        evaluate_every=settings["evaluate_every"],
        max_failed=settings["max_failed"],
        privacy=build(settings["privacy"]),
        transport=transport(settings["transport"]),
        ledger=Ledger(run.folder / "ledger.safetensors", run.key, writes=processes.rank() == 0),
    )


def privacy_spent(records: list[dict]) -> Metrics:
    """Epsilon of client-level privacy after the last round, where it is kept."""
    spent = records[-1].get("epsilon") if records else None
    return {} if spent is None else {"epsilon": spent}


def summary(result: FederatedResult, described: dict) -> Metrics:
    """The record's metrics: what was exchanged and who failed, and the models after the last round.

    `lora_gap_largest` is over all rounds: it falls with the rate, and in the last round there is next to none.
    """
    gaps = [record["lora_gap"] for record in result.records if record["lora_gap"] is not None]
    failed = [outcome for record in result.records for outcome in record["outcomes"] if "error" in outcome]
    return {
        "rounds": len(result.records),
        "clients": len(described["sizes"]),
        **({"skew": described["skew"]} if "skew" in described else {}),
        **described.get("floor", {}),
        "failed": len(failed),
        **({"lora_gap_largest": max(gaps)} if gaps else {}),
        "bytes_up": sum(record["bytes_up"] for record in result.records),
        "bytes_down": sum(record["bytes_down"] for record in result.records),
        **(loss_of(result.records[-1]) if result.records else {}),
        **privacy_spent(result.records),
        **result.metrics,
    }


@door("federate", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Run all rounds; returns the record's metrics, the run's key and folder, and where its models are kept."""
    return federate(config)


def federate(
    config: DictConfig, engine: Engine | None = None, workload: Workload | None = None, command: str = ""
) -> dict:
    """What the door does, on the configured engine and workload or on these; command: as in `Run`."""
    check_processes(config)
    team = configured_team(config)
    if engine is None:  # whoever brings one has its clients elsewhere
        team.meet(configured_device(config))
    with ExitStack() as held:
        with team.in_turn():  # of several processes one writes and prints
            run, first = Run.of(config, workload, command), team.rank == 0
            if first:  # another launch of this run waits here and then finds it finished
                held.enter_context(alone_in(run.lock))
        return made_or_found(run, config, team, engine)


def made_or_found(run: Run, config: DictConfig, team: Team, engine: Engine | None = None) -> dict:
    """What `federate` returns, with no other launch of this run at work."""
    first = team.rank == 0
    if run.workload.miniature and first:
        title = config.data.title
        print(f"*** miniature, not {title}: these numbers say nothing about the real data set ***")
    found = records.find(Path(config.paths.records), key=run.key, kind="federated")
    if found and (run.workload.saved(run.folder) or nobody_trained(run, found[0])) and not config.fresh:
        if first:
            print(f"found: {run.folder} (fresh=true runs again){without_curve(run, found[0])}")
        return told(run, found[0])
    orchestrator = federation(run, engine)
    with team.in_turn():  # nobody reads the ledger before the first has set it aside
        if first:
            prepare_folder(run, config.fresh)
            forecast(run, orchestrator)
    memory.reset_peak()
    with closing(orchestrator.engine):
        result = rounds(run, orchestrator)
    record = run.record(
        lora_reach(orchestrator.module),
        kind="federated",
        key=run.key,
        metrics=summary(result, run.manifest),
        curves=curves(result.records),
        cost=memory.peak(),
        seconds=result.seconds,
        **run.workload.row(orchestrator.strategy, orchestrator.clients),
    )
    if first:
        run.workload.save(run.folder, orchestrator, result.models)
        print(f"federated: {run.folder}, record {records.write(record, Path(config.paths.records))}")
    return told(run, record)


def nobody_trained(run: Run, record: records.Record) -> bool:
    """Whether every client of every round failed, or there was no round: such a run may keep no model."""
    per_round = run.federated["per_round"] or record.metrics["clients"]
    return record.metrics["failed"] >= record.metrics["rounds"] * per_round


def without_curve(run: Run, record: records.Record) -> str:
    """What to do where a found record lacks measurements that are asked for: how often is no part of a run's key."""
    every = run.federated["evaluate_every"]
    missing = unmeasured(record.curves, record.metrics, int(record.metrics["rounds"]), every)
    return f"; {len(missing)} of its rounds were not measured: fresh=true for the curve" if missing else ""


def prepare_folder(run: Run, fresh: bool) -> None:
    """Say what was read and who holds what, and keep it in the run's folder; `fresh` sets an earlier run aside."""
    if fresh:
        set_aside(run.folder)
    manifest = run.manifest
    sizes = manifest["sizes"]
    skew = f", skew {manifest['skew']:.2f}" if "skew" in manifest else ""
    if run.described:
        print(run.described)
    print(f"{len(sizes)} clients by {run.federated['by']}: {sizes} samples{skew}")
    run.folder.mkdir(parents=True, exist_ok=True)
    left_out = {} if run.rejected is None else {"rejected": run.rejected}
    (run.folder / "partition.json").write_text(json.dumps(manifest | left_out, indent=1) + "\n")


def forecast(run: Run, orchestrator: Orchestrator) -> None:
    """Say which layers LoRA trains, and where privacy is kept how large its noise is beside what clients may change."""
    if reach := lora_reach(orchestrator.module):
        print(f"LoRA on {reach}")
    if orchestrator.privacy:
        numbers = sum(tensor.numel() for tensor in orchestrator.adapter.extract().values())
        print(orchestrator.privacy.forecast(numbers, run.federated["per_round"] or orchestrator.clients))


def rounds(run: Run, orchestrator: Orchestrator) -> FederatedResult:
    """Run or resume the federation under the loggers; beside the first process nobody watches."""
    if processes.rank() > 0:
        return orchestrator.run()
    config, name = run.config, f"{run.config['name']} on {run.config['data']['name']}"
    asked = run.federated["per_round"] or orchestrator.clients
    with loggers.make(run.folder, key=run.key, job_type="federated", **told_to_loggers(run)) as sinks:
        with Watch(name, orchestrator.rounds, asked, sinks) as watch:
            result = orchestrator.run(watch, watch.client)
        if config["show_samples"]:  # memes and medical images leave the house only when asked to
            showing.samples(sinks, run.workload.samples(), step=max(orchestrator.rounds - 1, 0))
    if config["client_runs"] and config["logger"]["mode"] != "disabled":
        clients(run, result)
    return result


def clients(run: Run, result: FederatedResult) -> None:
    """The rounds of every client as a run of its own in W&B, beside the federation's."""
    by_client: dict[int, dict[int, Metrics]] = {}
    for record in result.records:
        for outcome in record["outcomes"]:
            failed = {"failed": float("error" in outcome), "seconds": outcome["seconds"]}
            own = record["by_model"].get(f"client {outcome['client']}", {})
            by_client.setdefault(outcome["client"], {})[record["round"]] = client_values(outcome) | own | failed
    for client, measured in sorted(by_client.items()):
        facts = told_to_loggers(run)
        facts["config"] |= {"client": client, "samples": run.manifest["sizes"][client]}
        facts |= {"tags": [*facts["tags"], f"client {client}"], "name": f"{facts['experiment']} client {client}"}
        key, folder = identity.digest([run.key, "client", client]), run.folder / "clients" / str(client)
        with loggers.make(folder, key=key, job_type="client", **facts) as sinks:
            for sink in sinks:
                for number, values in measured.items():
                    sink.log_metrics(values, step=number)
                sink.save()


def told_to_loggers(run: Run) -> dict[str, Any]:
    """What is the same for the federation's run and for those of its clients."""
    config = run.config
    experiment, settings = f"{config['data']['name']}/{config['name']}", identity.stripped(config)
    return {"experiment": experiment, "tags": tags(run), "config": settings, **config["logger"]}


def tags(run: Run) -> list[str]:
    """By which the run is found in W&B: method, data, protocol, scenario, strategy."""
    config, federated = run.config, run.federated
    strategy = str(federated["strategy"]["_target_"]).rpartition(".")[2]
    return [config["name"], config["data"]["name"], config["data"]["split"], f"by {federated['by']}", strategy]


def told(run: Run, record: records.Record) -> dict:
    """What the door returns."""
    covered = {"epsilon covers": COVERED} if "epsilon" in record.metrics else {}
    models = run.workload.saved(run.folder)
    return {"key": run.key, "folder": str(run.folder), "checkpoint": models, **record.metrics, **covered}


if __name__ == "__main__":
    main()
