"""The clients' mean of a round, the same bytes in whatever order they arrive (design contract 5)."""

from collections.abc import Callable, Sequence

import torch

from federated.state import State


class OrderedMean:
    """Folds n_k x_k into float64 sums in the order of the client ids and divides once at the end.

    An update that arrives before its turn waits in a reorder buffer; who keeps no more than w clients started and not
    yet `folded` or dropped never has more than w states waiting. A dropped client frees its place, and the mean is of
    those that remain. seen: told every state with its weight, in the order in which they are folded.
    """

    def __init__(self, clients: Sequence[int], seen: Callable[[State, float], None] | None = None):
        self._order, self._seen = sorted(clients), seen
        if len(set(self._order)) != len(self._order):
            raise ValueError(f"a client occurs twice among {self._order}")
        self._turn = 0
        self._waiting: dict[int, tuple[State, float] | None] = {}
        self._sums: State = {}
        self._shapes: dict[str, torch.Size] | None = None
        self._weight = 0.0
        self.folded = 0
        self.most_waiting = 0

    @property
    def settled(self) -> int:
        """Clients whose turn has passed, folded or dropped."""
        return self._turn

    def add(self, client: int, state: State, weight: float) -> None:
        """Hand in a client's state with its weight (n_k, or 1).

        Raises ValueError, and changes nothing, unless it has the names and shapes of the first that was handed in.
        """
        self._place(client, (state, weight))

    def drop(self, client: int) -> None:
        """The client failed."""
        self._place(client, None)

    def result(self) -> State | None:
        """The float64 mean, None without a survivor. Raises RuntimeError before every client is settled."""
        if self._turn < len(self._order):
            raise RuntimeError(f"clients {self._order[self._turn :]} are not settled yet")
        if self._weight == 0:
            return None
        return {name: total / self._weight for name, total in self._sums.items()}

    def _place(self, client: int, entry: tuple[State, float] | None) -> None:
        if client not in self._order[self._turn :] or client in self._waiting:
            raise ValueError(f"client {client} is not awaited")
        if entry is not None:
            self._expect(client, entry[0])
        self._waiting[client] = entry
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        while self._turn < len(self._order) and self._order[self._turn] in self._waiting:
            turn = self._waiting.pop(self._order[self._turn])
            self._turn += 1
            if turn is not None:
                self._fold(*turn)

    def _expect(self, client: int, state: State) -> None:
        shapes = {name: tensor.shape for name, tensor in state.items()}
        if self._shapes is None:
            self._shapes = shapes
        for name in sorted(self._shapes.keys() | shapes.keys()):
            expected, found = (tuple(one[name]) if name in one else "no such tensor" for one in (self._shapes, shapes))
            if expected != found:
                told = f"client {client}: expected '{name}' as in the clients before, {expected}, found {found}"
                raise ValueError(f"{told}; drop the client")

    def _fold(self, state: State, weight: float) -> None:
        self._weight += weight
        self.folded += 1
        if self._seen:
            self._seen(state, weight)
        if not self._sums:
            self._sums = {name: tensor.to(torch.float64) * weight for name, tensor in state.items()}
            return
        # Hundreds of small tensors by one call; n_k x_k of float32 is exact in float64, so only the sum is rounded.
        torch._foreach_add_([self._sums[name] for name in state], list(state.values()), alpha=weight)
