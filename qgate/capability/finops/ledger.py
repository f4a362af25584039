"""Budgets enforced: verdicts from memory, reservations from leased slices, spending told to the store.

    verdict   (sync)   price, standing and forecast in memory: ok, prefer-local or refused
    reserve   (async)  the request's upper bound out of this gate's slice of every budget that it counts in;
                       where a slice is used up, one short transaction leases more of all of them
    settle    (sync)   what it really cost, or all that was set aside where nobody knows
    run                tells the store what was spent, returns what is idle, looks at what the others spent

Invariant: committed, kept under a row lock in the store, is never above the hard limit, and what all gates
set aside or spent is never above committed. A gate that is killed leaves its slice committed until the period
ends. While the store is away a gate spends what it has leased and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import structlog

from qgate.capability.finops.bounds import answer_bound, cost_bound
from qgate.capability.finops.budgets import Budget, concerned
from qgate.capability.finops.prices import QUANTUM, ListedPrice, PriceTable, plain
from qgate.capability.finops.purse import ZERO, Share, Slice
from qgate.capability.finops.standing import Account, money
from qgate.capability.inventory import Candidate
from qgate.capability.work import Outcome, Problem, Reservation, Usage, Verdict, Work
from qgate.governance.audit import AuditEvent, AuditLog
from qgate.governance.directory import Directory
from qgate.store import Store, StoreUnavailableError
from qgate.store import budgets as table
from qgate.store.budgets import Shift, Told

HEARTBEAT_S: Final = 10.0
"""How often a slice is told of, also where nothing was spent from it."""
SILENT_S: Final = 6 * HEARTBEAT_S
RECALL_WAIT_S: Final = 0.3
AWAY_HELD_S: Final = 0.5
JOURNAL_MAX: Final = 10_000
_STORE_TIMEOUT_S: Final = 5.0

log = structlog.get_logger(__name__)
_OK: Final = Verdict()


@dataclass(slots=True)
class Hold:
    """Money set aside for one attempt."""

    amount: Decimal
    price: ListedPrice | None
    shares: tuple[Share, ...]
    settled: bool = False
    cost: Decimal = ZERO


class BudgetLedger:
    """The `Ledger` of one gate process. `monotonic` and `clock` (unix) are seconds."""

    def __init__(
        self,
        store: Store,
        directory: Directory,
        *,
        gate: str,
        prices: PriceTable,
        audit: AuditLog | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prices = prices
        self.overdrawn = Counter[str]()
        self._store = store
        self._directory = directory
        self._gate = gate
        self._audit = audit
        self._clock = clock
        self._monotonic = monotonic
        self._accounts: dict[str, Account] = {}
        self._ordered: tuple[Budget, ...] = ()
        self._storing = asyncio.Lock()
        self._demand: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._away_until = 0.0
        self._returned = asyncio.Event()
        self._stir = asyncio.Event()
        self._recalled: set[str] = set()
        self._journal: deque[Shift] = deque(maxlen=JOURNAL_MAX)
        self._adopt()
        directory.subscribe(self._directory_changed)

    # --- what the engine asks

    def price(self, candidate: Candidate) -> ListedPrice | None:
        """The candidate's price; None where it costs nothing, or nobody knows what it costs."""
        if candidate.kind != "provider":
            return None
        model = candidate.version or candidate.model
        found = self.prices.find(candidate.node, model, self._directory.prices())
        return None if found is None or found.free else found

    def upper_bound(self, work: Work, candidate: Candidate, max_tokens: int | None = None) -> Decimal:
        """The most that `work` can cost at `candidate` with an answer of at most `max_tokens`."""
        price = self.price(candidate)
        if price is None:
            return ZERO
        policy = work.app.policy
        answer = answer_bound(
            work.body, work.request.max_tokens, policy.max_tokens if policy else None, max_tokens
        )
        return cost_bound(price, work.body, 0 if work.kind == "embedding" else answer)

    def verdict(self, work: Work, candidate: Candidate) -> Verdict:
        """Whether the budgets let this candidate be used, from memory."""
        if candidate.kind != "provider":
            return _OK
        budgets = self._concerned(work, candidate)
        most = work.request.budget
        if not budgets and most is None:
            return _OK
        price = self.price(candidate)
        if price is None:
            return self._unpriced(work, candidate, budgets)
        amount = self.upper_bound(work, candidate)
        if most is not None and amount > most:
            return Verdict(
                "refused", f"it may cost {money(amount)} {price.currency}, the request allows {money(most)}"
            )
        now, strongest = self._monotonic(), _OK
        for budget in budgets:
            if budget.currency != price.currency:
                return Verdict(
                    "refused", f"{budget.id} is in {budget.currency}, the price in {price.currency}"
                )
            account = self._accounts[budget.id]
            room = account.room(now)
            if room is not None and amount > room:
                return Verdict("refused", account.left_in_words(room))
            if account.mood.strength > strongest.pressure:
                strongest = Verdict(
                    "prefer-local", f"{budget.id}: {account.mood.reason}", account.mood.strength
                )
        return strongest

    async def reserve(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation:
        """Set `upper_bound` aside in every budget that it counts in.

        Raises `Problem`: "budget_exceeded" where it does not fit, "unavailable" where the store is away and
        what this gate leased is used up.
        """
        price = self.price(candidate)
        if candidate.kind != "provider":
            return Hold(ZERO, None, ())
        budgets = self._concerned(work, candidate)
        if price is None:
            verdict = self._unpriced(work, candidate, budgets)
            if verdict.action == "refused":
                raise Problem(verdict.reason, code="budget_exceeded")
            return Hold(ZERO, None, ())
        amount = max(ZERO, upper_bound).quantize(QUANTUM)
        if work.request.budget is not None and amount > work.request.budget:
            raise Problem(
                f"it may cost {money(amount)} {price.currency}, and the request allows "
                f"{money(work.request.budget)}",
                code="budget_exceeded",
                param="budget",
            )
        if mismatched := [one.id for one in budgets if one.currency != price.currency]:
            raise Problem(
                f"{mismatched[0]} is not in {price.currency}, the currency of the price",
                code="budget_exceeded",
            )
        if not budgets or amount == 0:
            return Hold(amount, price, ())
        shares = self._take(budgets, amount)
        if shares is None:
            shares = await self._take_leased(budgets, amount)
        return Hold(amount, price, shares)

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Say what was used; None where it is not known, which counts as all of it."""
        assert isinstance(reservation, Hold)
        if reservation.settled:
            return
        reservation.settled = True
        if reservation.price is None:
            return
        cost = reservation.amount if usage is None else reservation.price.of(usage)
        reservation.cost = cost
        for share in reservation.shares:
            share.purse.settled(share, cost)
            if cost > reservation.amount:
                self.overdrawn[share.purse.budget] += 1

    def shifted(self, work: Work, outcome: Outcome) -> None:
        """Note that a budget sent a request to a local model, if it did in the end."""
        reason, last = outcome.shift, outcome.hops[-1] if outcome.hops else None
        if not reason or last is None or last.kind == "provider":
            return
        budget = next((one.id for one in self._ordered if one.id in reason), "")
        self._note(
            Shift(
                id=secrets.token_hex(8),
                at=self._clock(),
                budget=budget,
                what="request",
                reason=reason,
                app=work.app.name,
                request=work.id,
                from_model=work.request.model or "",
                to_model=last.model,
            )
        )

    # --- reserving

    def _concerned(self, work: Work, candidate: Candidate) -> tuple[Budget, ...]:
        if not self._ordered:
            return ()
        policy = work.app.policy
        return concerned(
            self._ordered,
            app=work.app.name,
            team=policy.team if policy else None,
            provider=candidate.node,
        )

    def _unpriced(self, work: Work, candidate: Candidate, budgets: Sequence[Budget]) -> Verdict:
        """What has no price: free where it is said to be or is the company's own, else not to be budgeted."""
        model = candidate.version or candidate.model
        known = self.prices.find(candidate.node, model, self._directory.prices()) is not None
        if known or candidate.local or not (budgets or work.request.budget is not None):
            return _OK
        return Verdict(
            "refused",
            f"nobody has said what {model} costs at {candidate.node}, so no budget can hold it "
            f"(meshctl provider price set {candidate.node}/{model} ...)",
        )

    def _take(self, budgets: Sequence[Budget], amount: Decimal) -> tuple[Share, ...] | None:
        """A share of every budget's purse, or of none."""
        now = self._monotonic()
        purses = [self._account(budget).purse for budget in budgets]
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
            if (shares := self._take(budgets, amount)) is not None:
                return shares
            # Somebody before us in the queue may have been told no.
            self._refuse_known(budgets, amount)
            now = self._monotonic()
            if now < self._away_until:
                return self._on_trust(budgets, amount)
            missing = [b for b in budgets if self._account(b).purse.free(now) < amount]
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
                account = self._account(budget)
                assert answer.granted is not None
                purse, until = account.purse, now + answer.remaining_s
                purse.add(answer.granted, answer.started_at, until, self._monotonic())
                account.committed += answer.granted
                account.ends_at = answer.ends_at
            gone = {budget.id for budget, answer in leased if answer is None}
            return self._take([budget for budget in budgets if budget.id not in gone], amount)

    async def _ask(
        self, budgets: Sequence[Budget], amount: Decimal
    ) -> list[tuple[Budget, table.Lease | None]] | _Short:
        answers: list[tuple[Budget, table.Lease | None]] = []
        with contextlib.suppress(_TooLittleError):
            async with self._store.transaction() as connection:
                for budget in sorted(budgets, key=lambda one: one.id):
                    account = self._account(budget)
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
                account = self._account(budget)
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
            purse = self._account(budget).purse
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
            account = self._account(budget)
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

    def _account(self, budget: Budget) -> Account:
        account = self._accounts.get(budget.id)
        if account is None:
            account = self._accounts[budget.id] = Account.of(budget, secrets.token_hex(8))
        return account

    # --- keeping

    async def run(self) -> None:
        """Keep the store and this gate's view of it up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="budget recalls")
            while True:
                self._stir.clear()
                with contextlib.suppress(StoreUnavailableError, TimeoutError):
                    await self.flush()
                    await self.refresh()
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
        if payload.startswith("!"):
            self._returned.set()
        else:
            self._recalled.add(payload)
            self._stir.set()

    async def flush(self, *, everything: bool = False) -> None:
        """Tell the store what was spent and what is given back; with `everything` all that is free.

        What is given back is out of this gate's hands before the store is told, and is told once only: if
        that is lost, it counts as spent.
        """
        async with self._storing:
            now = self._monotonic()
            await self._repay()
            idle_s = float(self._directory.setting("finops.idle_return_s"))
            told: list[tuple[Slice, Told]] = []
            recalled, self._recalled = self._recalled, set()
            for account in self._accounts.values():
                purse, name = account.purse, account.budget.id
                wait = 0.0 if everything or name in recalled else idle_s
                back = purse.give_back(now, idle_s=wait)
                for one in purse.slices:
                    gives = back if one is purse.slices[-1] else ZERO
                    due = one.spent != one.told or gives or now - one.told_at >= HEARTBEAT_S
                    if due and one.granted + one.spent + gives > 0:
                        told.append((one, Told(name, one.started_at, account.run, one.spent, gives)))
            if told:
                async with self._store.transaction() as connection:
                    await table.settle(connection, [one for _, one in told])
                    for name in recalled:
                        await table.recall(connection, "!" + name)
                for slice_, said in told:
                    slice_.told, slice_.told_at = said.spent, now
            for account in self._accounts.values():
                account.purse.forget(now)
            if self._journal:
                shifts = list(self._journal)
                async with self._store.connection() as connection:
                    await table.add_shifts(connection, self._gate, shifts)
                for _ in shifts:
                    self._journal.popleft()

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
        if not self._ordered:
            return
        async with self._storing:
            now = self._monotonic()
            async with self._store.connection() as connection:
                found = await table.standings(connection, silent_s=SILENT_S)
            for budget in self._ordered:
                if (stands := found.get(budget.id)) is not None:
                    self._account(budget).saw(
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

    def standing(self) -> list[dict[str, Any]]:
        """Rows of what this gate knows of each budget, for SHOW and for status."""
        now, rows = self._monotonic(), []
        for budget in self._ordered:
            account = self._account(budget)
            coming = account.coming(now)
            rows.append(
                {
                    **budget.as_json(),
                    "spent": plain(account.spent()),
                    "committed": plain(account.committed),
                    "held_here": plain(account.purse.free(now)),
                    "per_hour": round(coming.per_s * 3600, 6),
                    "projected": plain(coming.projected),
                    "state": "prefer-local" if account.shifting else "ok",
                    "reason": account.mood.reason,
                    "ends_at": None if account.ends_at is None else account.ends_at.isoformat(),
                }
            )
        return rows

    def _turned(self, account: Account) -> None:
        """A budget began or ended to ask for local models."""
        what = "prefer-local" if account.shifting else "ok"
        reason = account.mood.reason or "its rate is within the limit again"
        log.info("a budget changed its mind", budget=account.budget.id, state=what, reason=reason)
        self._note(
            Shift(
                id=secrets.token_hex(8),
                at=self._clock(),
                budget=account.budget.id,
                what=what,
                reason=reason,
            )
        )

    def _note(self, shift: Shift) -> None:
        self._journal.append(shift)
        if self._audit is not None:
            detail = {"what": f"budget.{shift.what}", "name": shift.budget, "reason": shift.reason}
            if shift.request:
                detail |= {"request": shift.request, "model": shift.to_model}
            self._audit.record(AuditEvent("budget", app=shift.app, started_at=shift.at, detail=detail))

    def _directory_changed(self, names: frozenset[str]) -> None:
        if any(name.startswith("budget:") for name in names):
            self._adopt()
            self._stir.set()

    def _adopt(self) -> None:
        """Take over the directory's budgets; what is held of one that was removed stays committed."""
        budgets = self._directory.budgets()
        self._ordered = tuple(budgets[name] for name in sorted(budgets))
        for name in list(self._accounts):
            if name not in budgets:
                del self._accounts[name]
        for budget in self._ordered:
            account = self._account(budget)
            account.budget = budget
            account.refused_above = None


@dataclass(frozen=True, slots=True)
class _Short:
    """The budget in which a need does not fit: what is left of it, and what other gates hold unspent."""

    account: Account
    left: Decimal
    idle: Decimal


class _TooLittleError(Exception):
    """Undo a transaction whose leases are not enough."""
