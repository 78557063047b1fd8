"""How often and for how much the teacher may be asked."""

from __future__ import annotations

from serve.quota import DailyUsage, Spent


class Rate:
    """At most `share` of all answers in the long run, and `burst` in a row.

    A bucket that each answer fills by `share` and each of the teacher's empties by one: after n
    answers at most `share * n + burst` were the teacher's.
    """

    def __init__(self, share: float, *, burst: int):
        self._share = share
        self._burst = float(burst) if share else 0.0
        self._left = self._burst

    def answered(self) -> None:
        """Any answer was asked for."""
        self._left = min(self._burst, self._left + self._share)

    def take(self) -> bool:
        """Whether the teacher may be asked now; counts it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def give_back(self) -> None:
        """The teacher was not asked after all."""
        self._left = min(self._burst, self._left + 1.0)


class DailyBudget:
    """Dollars a day (UTC). What requests under way may cost at most is held back."""

    def __init__(self, usd_per_day: float, *, usage: DailyUsage, account: str):
        """`usage` knows what `account` has spent today, before this process began too."""
        self.usd_per_day = usd_per_day
        self._usage = usage
        self._account = account
        self._held_usd = 0.0

    @property
    def spent_usd(self) -> float:
        """Dollars spent today."""
        return self._usage.spent(self._account).usd

    def reserve(self, most_usd: float) -> bool:
        """Hold back what a request can cost at most; False when the day has not that much left."""
        if self.spent_usd + self._held_usd + most_usd > self.usd_per_day:
            return False
        self._held_usd += most_usd
        return True

    def settle(self, most_usd: float, actual: Spent) -> None:
        """A reserved request is over."""
        self._held_usd = max(0.0, self._held_usd - most_usd)
        self._usage.add(self._account, actual)
