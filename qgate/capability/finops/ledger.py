"""Budgets enforced: a verdict from memory, money set aside before a request, the truth settled after it.

    verdict   (sync)   price, standing and forecast in memory: ok, prefer-local or refused
    reserve   (async)  the request's upper bound out of this gate's slice of every budget that it counts in
    settle    (sync)   what it really cost, or all that was set aside where nobody knows

The slices, and what the store is told and asked, are `accounts`.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from qgate.capability.finops.accounts import Accounts
from qgate.capability.finops.bounds import answer_bound, cost_bound
from qgate.capability.finops.budgets import Budget, concerned
from qgate.capability.finops.journal import Journal
from qgate.capability.finops.prices import QUANTUM, ListedPrice, PriceTable, plain
from qgate.capability.finops.purse import ZERO, Share
from qgate.capability.finops.standing import money
from qgate.capability.inventory import Candidate
from qgate.capability.work import Outcome, Problem, Reservation, Usage, Verdict, Work
from qgate.governance.audit import AuditLog
from qgate.governance.directory import Directory
from qgate.store import Store
from qgate.store.budgets import Shift

_OK: Final = Verdict()
KNOWN_MAX: Final = 4_096
"""Models whose price is remembered; a name comes from a provider's list, so nobody makes them up."""


@dataclass(slots=True)
class Hold:
    """Money set aside for one attempt."""

    amount: Decimal
    price: ListedPrice | None
    shares: tuple[Share, ...]
    settled: bool = False


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
        self._known: dict[tuple[str, str], ListedPrice | None] = {}  # by provider and model
        self._own: Mapping[str, ListedPrice] | None = None  # an administrator's prices, as `_known` has them
        self._directory = directory
        self._clock = clock
        self._monotonic = monotonic
        self._journal = Journal(store, gate=gate, audit=audit)
        self.accounts = Accounts(store, directory, self._journal, gate=gate, clock=clock, monotonic=monotonic)

    # --- life

    async def run(self) -> None:
        """Keep the store and this gate's view of it up to date, until cancelled."""
        await self.accounts.run()

    async def flush(self, *, everything: bool = False) -> None:
        """Tell the store what was spent now; with `everything` give back all that is free."""
        await self.accounts.flush(everything=everything)

    async def refresh(self) -> None:
        """Look at how the budgets stand now, and judge them."""
        await self.accounts.refresh()

    async def close(self) -> None:
        """Give back what is not spent; what is still set aside counts as spent."""
        await self.accounts.close()

    # --- what the engine asks

    def price(self, candidate: Candidate) -> ListedPrice | None:
        """The candidate's price; None where it costs nothing, or nobody knows what it costs."""
        if not candidate.charged:
            return None
        if candidate.kind == "pool":
            asked = candidate.price
            return asked if isinstance(asked, ListedPrice) and not asked.free else None
        found = self._listed(candidate)
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
        if not candidate.charged:
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
        steers = self._directory.setting("automation.smart_routing")
        for budget in budgets:
            if budget.currency != price.currency:
                return Verdict(
                    "refused", f"{budget.id} is in {budget.currency}, the price in {price.currency}"
                )
            account = self.accounts.of(budget)
            room = account.room(now)
            if room is not None and amount > room:
                may = f"it may cost up to {money(amount)} {price.currency}"
                return Verdict("refused", f"{may}, and {account.left_in_words(room)}")
            if steers and account.mood.strength > strongest.pressure:
                strongest = Verdict(
                    "prefer-local", f"{budget.id}: {account.mood.reason}", account.mood.strength
                )
        return strongest

    def reserve_at_once(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation | None:
        """`reserve` out of what this gate holds already; None where more would have to be leased first."""
        amount, price, budgets = self._asked(work, candidate, upper_bound)
        if not budgets or amount == 0:
            return Hold(amount, price, ())
        shares = self.accounts.take_held(budgets, amount)
        return None if shares is None else Hold(amount, price, shares)

    async def reserve(self, work: Work, candidate: Candidate, upper_bound: Decimal) -> Reservation:
        """Set `upper_bound` aside in every budget that it counts in.

        Raises `Problem`: "budget_exceeded" where it does not fit, "unavailable" where the store is away and
        what this gate leased is used up.
        """
        amount, price, budgets = self._asked(work, candidate, upper_bound)
        if not budgets or amount == 0:
            return Hold(amount, price, ())
        return Hold(amount, price, await self.accounts.take(budgets, amount))

    def _asked(
        self, work: Work, candidate: Candidate, upper_bound: Decimal
    ) -> tuple[Decimal, ListedPrice | None, tuple[Budget, ...]]:
        """How much is to be set aside, at which price (None: nothing is charged), and in which budgets."""
        if not candidate.charged:
            return ZERO, None, ()
        price = self.price(candidate)
        budgets = self._concerned(work, candidate)
        if price is None:
            verdict = self._unpriced(work, candidate, budgets)
            if verdict.action == "refused":
                raise Problem(verdict.reason, code="budget_exceeded")
            return ZERO, None, ()
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
        return amount, price, budgets

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Say what was used; None where it is not known, which counts as all of it."""
        assert isinstance(reservation, Hold)
        if reservation.settled:
            return
        reservation.settled = True
        if reservation.price is None:
            return
        cost = reservation.amount if usage is None else reservation.price.of(usage)
        for share in reservation.shares:
            share.purse.settled(share, cost)
            if cost > reservation.amount:
                self.overdrawn[share.purse.budget] += 1

    def shifted(self, work: Work, outcome: Outcome) -> None:
        """Note that a budget sent a request to a local model, if it did in the end."""
        reason, last = outcome.shift, outcome.hops[-1] if outcome.hops else None
        if not reason or last is None or last.kind == "provider":
            return
        budget = next((one.id for one in self.accounts.ordered if one.id in reason), "")
        self._journal.note(
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

    # --- what people ask

    def standing(self) -> list[dict[str, Any]]:
        """Rows of what this gate knows of each budget, for SHOW and for status."""
        now, rows = self._monotonic(), []
        for budget in self.accounts.ordered:
            account = self.accounts.of(budget)
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

    # --- the inside

    def _concerned(self, work: Work, candidate: Candidate) -> tuple[Budget, ...]:
        if not self.accounts.ordered:
            return ()
        policy = work.app.policy
        return concerned(
            self.accounts.ordered,
            app=work.app.name,
            team=policy.team if policy else None,
            provider=candidate.node,
        )

    def _listed(self, candidate: Candidate) -> ListedPrice | None:
        """What anybody has said of a candidate's price."""
        own = self._directory.prices()
        if own is not self._own:
            self._own = own
            self._known.clear()
        key = (candidate.node, candidate.version or candidate.model)
        try:
            return self._known[key]
        except KeyError:
            found = self.prices.find(*key, own)
            if len(self._known) < KNOWN_MAX:
                self._known[key] = found
            return found

    def _unpriced(self, work: Work, candidate: Candidate, budgets: Sequence[Budget]) -> Verdict:
        """What has no price: free where it is said to be or is the company's own, else not to be budgeted."""
        known = self._listed(candidate) is not None
        if known or candidate.local or not (budgets or work.request.budget is not None):
            return _OK
        model = candidate.version or candidate.model
        return Verdict(
            "refused",
            f"nobody has said what {model} costs at {candidate.node}, so no budget can hold it "
            f"(meshctl provider price set {candidate.node}/{model} ...)",
        )
