"""Every row of the table, by name, in the order of the table."""

from benchmarks.harness import Workload
from benchmarks.workloads import data, doors, evaluation, federation, training

ALL: dict[str, Workload] = {
    workload.name: workload for part in (data, training, evaluation, federation, doors) for workload in part.WORKLOADS
}
