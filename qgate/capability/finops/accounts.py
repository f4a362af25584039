"""A gate's accounts with the pool's budgets, kept true to the store: slices leased, spent, told, given back.

Where a slice is used up, one short transaction leases more of every budget that is short. A task of its own
tells what was spent, returns what is idle, and looks at what the others have spent.

Invariant: committed, kept under a row lock in the store, is never above the hard limit, and what all gates
set aside or spent is never above committed. A gate that is killed leaves its slice committed until the period
ends. While the store is away a gate spends what it has leased and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import structlog

from qgate.capability.finops.budgets import Budget
from qgate.capability.finops.journal import Journal
from qgate.capability.finops.prices import QUANTUM, plain
from qgate.capability.finops.purse import ZERO, Share, Slice
from qgate.capability.finops.standing import Account, money
from qgate.capability.work import Problem
from qgate.governance.directory import Directory
from qgate.store import Store, StoreUnavailableError
from qgate.store import budgets as table
from qgate.store.budgets import Shift, Told

HEARTBEAT_S: Final = 10.0
"""How often a slice is told of, also where nothing was spent from it."""
SILENT_S: Final = 6 * HEARTBEAT_S
RECALL_WAIT_S: Final = 0.3
AWAY_HELD_S: Final = 0.5
_STORE_TIMEOUT_S: Final = 5.0
_RETURNED: Final = "!"  # before a budget's id in a notification: not a call for it, but the answer

log = structlog.get_logger(__name__)


class Accounts:
    """One account a budget of the directory. `monotonic` and `clock` (unix) are seconds."""

    def __init__(
        self,
        store: Store,
        directory: Directory,
        journal: Journal,
        *,
        gate: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.ordered: tuple[Budget, ...] = ()
        self._store = store
        self._directory = directory
        self._journal = journal
        self._gate = gate
        self._clock = clock
        self._monotonic = monotonic
        self._accounts: dict[str, Account] = {}
        self._storing = asyncio.Lock()
        self._demand: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._away_until = 0.0
        self._returned = asyncio.Event()
        self._stir = asyncio.Event()
        self._recalled: set[str] = set()
        self._adopt()
        directory.subscribe(self._directory_changed)

    def of(self, budget: Budget) -> Account:
        """The account of a budget."""
        account = self._accounts.get(budget.id)
        if account is None:
            account = self._accounts[budget.id] = Account.of(budget, secrets.token_hex(8))
        return account

    # --- taking

    async def take(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...]:
        """A share of `amount` of every budget.

        Raises `Problem`: "budget_exceeded" where it does not fit, "unavailable" where the store is away and
        what this gate leased is used up.
        """
        shares = self.take_held(budgets, amount)
        return shares if shares is not None else await self._take_leased(budgets, amount)

    def take_held(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...] | None:
        """A share of every budget's purse, or None where this gate holds too little of one."""
        now = self._monotonic()
        purses = [self.of(budget).purse for budget in budgets]
        if not all((slice_ := purse.current(now)) and slice_.free >= amount for purse in purses):
            return None
        shares = [purse.take(amount, now) for purse in purses]
        return tuple(share for share in shares if share is not None)

    async def _take_leased(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...]:
        names = [budget.id for budget in budgets]
        self._refuse_known(budgets, amount)
        for name in names:
            self._demand[name] += amount
        try:
            recalled = False
            while True:
                short = await self._lease(budgets, amount)
                if isinstance(short, tuple):
                    return short
                if short is None:
                    continue  # a period ended in between: its successor is asked
                if recalled or short.left + short.idle < amount:
                    break
                # Others hold what they may not need: ask for it, and wait a moment.
                recalled = True
                await self._recall(short.account.budget.id)
        finally:
            for name in names:
                self._demand[name] -= amount
        account = short.account
        account.refuse(short.left, self._monotonic())
        raise self._exceeded(account, amount, short.left)

    async def _lease(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...] | _Short | None:
        """Lease what is missing in one transaction and take from it; `_Short` where it does not fit, None
        where it has to be tried anew.
        """
        async with self._storing:
            if (shares := self.take_held(budgets, amount)) is not None:
                return shares
            # Somebody before us in the queue may have been told no.
            self._refuse_known(budgets, amount)
            now = self._monotonic()
            if now < self._away_until:
                return self._on_trust(budgets, amount)
            missing = [b for b in budgets if self.of(b).purse.free(now) < amount]
            try:
                async with asyncio.timeout(_STORE_TIMEOUT_S):
                    leased = await self._ask(missing, amount)
            except (StoreUnavailableError, TimeoutError):
                self._away_until = self._monotonic() + AWAY_HELD_S
                return self._on_trust(budgets, amount)
            if isinstance(leased, _Short):
                return leased
            for budget, answer in leased:
                if answer is None:  # it was removed, and the directory will hear of it
                    self._accounts.pop(budget.id, None)
                    continue
                account = self.of(budget)
                assert answer.granted is not None
                purse, until = account.purse, now + answer.remaining_s
                purse.add(answer.granted, answer.started_at, until, self._monotonic())
                account.committed += answer.granted
                account.ends_at = answer.ends_at
            gone = {budget.id for budget, answer in leased if answer is None}
            return self.take_held([budget for budget in budgets if budget.id not in gone], amount)

    async def _ask(
        self, budgets: Sequence[Budget], amount: Decimal
    ) -> list[tuple[Budget, table.Lease | None]] | _Short:
        answers: list[tuple[Budget, table.Lease | None]] = []
        with contextlib.suppress(_TooLittleError):
            async with self._store.transaction() as connection:
                for budget in sorted(budgets, key=lambda one: one.id):
                    account = self.of(budget)
                    current = account.purse.current(self._monotonic())
                    held = current.free if current is not None else ZERO
                    answer = await table.lease(
                        connection,
                        budget.id,
                        run=account.run,
                        gate=self._gate,
                        need=amount - held,
                        want=self._wanted(budget),
                    )
                    answers.append((budget, answer))
                    if answer is not None and answer.granted is None:
                        raise _TooLittleError
        for budget, answer in answers:
            if answer is not None and answer.granted is None:
                account = self.of(budget)
                account.ends_at = answer.ends_at
                free = account.purse.free(self._monotonic())
                return _Short(account, max(ZERO, answer.left_over or ZERO) + free, answer.idle)
        return answers

    def _wanted(self, budget: Budget) -> Decimal:
        """How much to lease where there is plenty: a part of the limit, or what is being waited for."""
        part = Decimal(str(self._directory.setting("finops.slice_percent"))) / 100
        limit = budget.hard if budget.hard is not None else budget.soft
        slice_ = ZERO if limit is None else limit * part
        return max(slice_, self._demand[budget.id]).quantize(QUANTUM)

    def _on_trust(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...]:
        """While the store is away: soft limits are told later, hard ones hold."""
        now = self._monotonic()
        shares: list[Share] = []
        for budget in budgets:
            purse = self.of(budget).purse
            if purse.free(now) < amount and budget.hard is not None:
                for share in shares:
                    purse.settled(share, ZERO)
                raise Problem(
                    f"{budget.id} cannot be asked for more while the gate's store is away",
                    code="unavailable",
                    retry_after_s=1.0,
                )
            shares.append(purse.take(amount, now) or Share(purse, None, amount))
        return tuple(shares)

    async def _recall(self, budget: str) -> None:
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            self._returned.clear()
            async with self._store.connection() as connection:
                await table.recall(connection, budget)
            async with asyncio.timeout(RECALL_WAIT_S):
                await self._returned.wait()

    def _refuse_known(self, budgets: Sequence[Budget], amount: Decimal) -> None:
        now = self._monotonic()
        for budget in budgets:
            account = self.of(budget)
            if account.refuses(amount, now) and account.purse.free(now) < amount:
                raise self._exceeded(account, amount, account.refused_above)

    def _exceeded(self, account: Account, amount: Decimal, left: Decimal | None) -> Problem:
        budget = account.budget
        return Problem(
            f"{account.left_in_words(left)}, and this request may cost up to {money(amount)}",
            code="budget_exceeded",
            detail={
                "budget": budget.id,
                "left": None if left is None else plain(left),
                "needed": plain(amount),
                "currency": budget.currency,
                "resets_at": None if account.ends_at is None else account.ends_at.isoformat(),
            },
            hint=f"meshctl budget show {budget.id}",
        )

    # --- keeping

    async def run(self) -> None:
        """Keep the store and this gate's view of it up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="budget recalls")
            while True:
                self._stir.clear()
                try:
                    await self.flush()
                    await self.refresh()
                except (StoreUnavailableError, TimeoutError):
                    pass  # the directory's watch has said so already
                except Exception:  # budgets hold without this task, so it must not take the gate down
                    log.exception("the budgets could not be told")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(float(self._directory.setting("finops.interval_s"))):
                        await self._stir.wait()

    async def _listen(self) -> None:
        while True:
            lost = asyncio.Event()
            with contextlib.suppress(StoreUnavailableError):
                listener = await self._store.listen(table.CHANNEL, self._heard, lost=lost.set)
                try:
                    await lost.wait()
                finally:
                    await listener.close()
            await asyncio.sleep(1.0)

    def _heard(self, payload: str) -> None:
        if payload.startswith(_RETURNED):
            self._returned.set()
        else:
            self._recalled.add(payload)
            self._stir.set()

    async def flush(self, *, everything: bool = False) -> None:
        """Tell the store what was spent and what is given back; with `everything` all that is free.

        What is given back is out of this gate's hands before the store is told, and is told once only: if
        that is lost, it counts as spent. So it is not done before there is a connection to tell it over.
        """
        async with self._storing:
            await self._repay()
            now = self._monotonic()
            recalled, self._recalled = self._recalled, set()
            if recalled or self._due(now, everything=everything):
                async with self._store.transaction() as connection:
                    told = list(self._told(now, recalled, everything=everything))
                    await table.settle(connection, [said for _, said in told])
                    for name in recalled:
                        await table.recall(connection, _RETURNED + name)
                for slice_, said in told:
                    slice_.told, slice_.told_at = said.spent, now
            for account in self._accounts.values():
                account.purse.forget(now)
            await self._journal.flush()

    def _due(self, now: float, *, everything: bool) -> bool:
        """Whether the store has something to hear."""
        idle_s = 0.0 if everything else float(self._directory.setting("finops.idle_return_s"))
        for account in self._accounts.values():
            current = account.purse.current(now)
            if current is not None and current.free > 0 and now - current.used_at >= idle_s:
                return True
            if any(_unheard(one, now) for one in account.purse.slices):
                return True
        return False

    def _told(self, now: float, recalled: set[str], *, everything: bool) -> Iterator[tuple[Slice, Told]]:
        """What is to be told; what it gives back is given from this moment on."""
        idle_s = float(self._directory.setting("finops.idle_return_s"))
        for account in self._accounts.values():
            purse, name = account.purse, account.budget.id
            back = purse.give_back(now, idle_s=0.0 if everything or name in recalled else idle_s)
            for one in purse.slices:
                gives = back if one is purse.slices[-1] else ZERO
                if gives or _unheard(one, now):
                    yield one, Told(name, one.started_at, account.run, one.spent, gives)

    async def _repay(self) -> None:
        """Lease what was spent on trust while the store was away."""
        for account in self._accounts.values():
            purse = account.purse
            if purse.debt <= 0:
                continue
            now, debt = self._monotonic(), purse.debt
            async with self._store.transaction() as connection:
                answer = await table.lease(
                    connection, account.budget.id, run=account.run, gate=self._gate, need=debt, want=debt
                )
            purse.debt -= debt
            if answer is not None and answer.granted is not None:
                purse.add(answer.granted, answer.started_at, now + answer.remaining_s, now)
                purse.slices[-1].spent += debt

    async def refresh(self) -> None:
        """Look at how the budgets stand, and judge them."""
        if not self.ordered:
            return
        async with self._storing:
            now = self._monotonic()
            async with self._store.connection() as connection:
                found = await table.standings(connection, silent_s=SILENT_S)
            for budget in self.ordered:
                if (stands := found.get(budget.id)) is not None:
                    self.of(budget).saw(
                        committed=stands.committed,
                        spent=stands.spent + stands.lost,
                        started_at=stands.started_at,
                        ends_at=stands.ends_at,
                        remaining_s=stands.remaining_s,
                        now=now,
                    )
        watch_from = float(self._directory.setting("finops.forecast_from_percent")) / 100
        for account in list(self._accounts.values()):
            if account.judge(self._monotonic(), watch_from=watch_from):
                self._turned(account)

    async def close(self) -> None:
        """Give back what is not spent; what is still set aside counts as spent."""
        self._stir.set()
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                await self.flush(everything=True)

    def _turned(self, account: Account) -> None:
        """A budget began or ended to ask for local models."""
        what = "prefer-local" if account.shifting else "ok"
        reason = account.mood.reason or "its rate is within the limit again"
        log.info("a budget changed its mind", budget=account.budget.id, state=what, reason=reason)
        self._journal.note(
            Shift(
                id=secrets.token_hex(8),
                at=self._clock(),
                budget=account.budget.id,
                what=what,
                reason=reason,
            )
        )

    def _directory_changed(self, names: frozenset[str]) -> None:
        if any(name.startswith("budget:") for name in names):
            self._adopt()
            self._stir.set()

    def _adopt(self) -> None:
        """Take over the directory's budgets; what is held of one that was removed stays committed."""
        budgets = self._directory.budgets()
        self.ordered = tuple(budgets[name] for name in sorted(budgets))
        for name in list(self._accounts):
            if name not in budgets:
                del self._accounts[name]
        for budget in self.ordered:
            account = self.of(budget)
            account.budget = budget
            account.refused_above = None


def _unheard(one: Slice, now: float) -> bool:
    """Whether the store is to hear of a slice: it was spent from, or has not been heard of for a while."""
    return one.spent != one.told or (one.granted > 0 and now - one.told_at >= HEARTBEAT_S)


@dataclass(frozen=True, slots=True)
class _Short:
    """The budget in which a need does not fit: what is left of it, and what other gates hold unspent."""

    account: Account
    left: Decimal
    idle: Decimal


class _TooLittleError(Exception):
    """Undo a transaction whose leases are not enough."""
