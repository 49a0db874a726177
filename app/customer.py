"""Who pays or buys, in plain values: what takes money knows nothing of logins."""

from dataclasses import dataclass

from typing_extensions import override

from app.toss.partner import TossUser


@dataclass(frozen=True)
class Customer:
    user_id: str
    key_hash: str
    """Of the user's key at Toss: stays the same for who leaves and comes back."""
    toss_user: TossUser

    @override
    def __repr__(self) -> str:
        return f"Customer({self.user_id})"
