"""Mutants: code with one thing changed, under which a comparison with the released values must fail.

A test file of mutants holds rows `Mutant(name, owner, attribute, old, new)` and one parametrised test that calls
`caught(mutant, compare, monkeypatch)`. `compare` gives the error of everything it compares by name, as in
`goldens_sds_cl.compare`; it must build its modules itself, so that they run the changed code.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from goldens import BOUND


@dataclass(frozen=True)
class Mutant:
    """The function `attribute` of `owner` (a class, or the module that looks the function up), `old` text -> `new`.

    old may span lines, indented as if the function stood at the left margin.
    """

    name: str
    owner: Any
    attribute: str
    old: str
    new: str

    def apply(self, monkeypatch) -> None:
        function = getattr(self.owner, self.attribute)
        source = textwrap.dedent(inspect.getsource(function))
        # A row that no longer fits the code would test nothing.
        found = source.count(self.old)
        assert found == 1, f"{self.name}: {self.old!r} stands {found} times in {self.attribute}"
        # Compiled outside of its class, super() would not know where it stands.
        source = source.replace(self.old, self.new).replace("super()", "super(_owner, self)")
        scope = vars(sys.modules[function.__module__]) | {"_owner": self.owner}
        exec(compile(source, f"<mutant: {self.name}>", "exec"), scope)
        monkeypatch.setattr(self.owner, self.attribute, scope[function.__name__])


def caught(mutant: Mutant, compare: Callable[[], dict[str, float]], monkeypatch) -> None:
    """Fails unless the comparison, which runs to its end under the mutant, is beyond the bound."""
    mutant.apply(monkeypatch)
    found = compare()
    noticed = [name for name, value in found.items() if not value <= BOUND]  # a NaN is noticed too
    assert noticed, f"nothing notices {mutant.name}: the largest error is {max(found.values()):.1e}"
