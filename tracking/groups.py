"""Which records are one row of a table: those that differ in their seeds only, and what tells rows apart."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking import identity
from tracking.records import Record


@dataclass(frozen=True)
class Group:
    """Records that differ in their seeds only, and `note`, what tells them from others with the same name."""

    records: tuple[Record, ...]
    note: str = ""

    @property
    def first(self) -> Record:
        """The record that tells what all of them are of."""
        return self.records[0]


def grouped(records: Sequence[Record], all_records: Sequence[Record]) -> list[Group]:
    """Records that differ in seeds only, together; of two with the same seeds the newer. `all_records`: the parents."""
    by_key = {record.key: record for record in all_records}
    same_settings: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: r.created):
        same_settings[_recipe(record, by_key)][identity.digest(record.seeds)] = record
    named: dict[tuple, list[tuple[Record, ...]]] = defaultdict(list)
    for seeds in same_settings.values():
        members = tuple(sorted(seeds.values(), key=lambda r: sorted(r.seeds.items())))
        first = members[0]
        named[(first.data["split"], first.setting, first.method, first.variant)].append(members)
    return [
        Group(members, note)
        for _, rows in sorted(named.items(), key=lambda item: natural(item[0]))
        for members, note in zip(rows, _notes(rows), strict=True)
    ]


def natural(names: Sequence[str]) -> list[list[str | int]]:
    """Orders 5 % before 15 %."""
    return [[int(p) if n % 2 else p for n, p in enumerate(re.split(r"([0-9]+)", name))] for name in names]


def _recipe(record: Record, by_key: Mapping[str, Record]) -> str:
    """What stays the same from seed to seed, through the runs that a result builds on."""
    parents = [_recipe(by_key[key], by_key) if key in by_key else key for key in record.parents if key != record.key]
    row = [record.kind, record.method, record.variant, record.setting, record.data]
    return identity.digest([row, _seedless(identity.stripped(record.config)), parents])


def _seedless(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _seedless(v) for k, v in node.items() if not re.fullmatch(r"(.*_)?seeds?", str(k))}
    return [_seedless(value) for value in node] if isinstance(node, list) else node


def _notes(rows: Sequence[tuple[Record, ...]]) -> list[str]:
    """For rows of the same name: the settings in which they differ."""
    if len(rows) == 1:
        return [""]
    settings = [dict(_leaves(_seedless(identity.stripped(members[0].config)))) for members in rows]
    differing = [key for key in sorted(set().union(*settings)) if len({repr(s.get(key)) for s in settings}) > 1]
    if not differing:  # the data differ, or what a run was built on
        return [f"run {members[0].id}" for members in rows]
    more = ", ..." if len(differing) > 4 else ""
    return [", ".join(f"{key}={s.get(key)}" for key in differing[:4]) + more for s in settings]


def _leaves(node: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node
