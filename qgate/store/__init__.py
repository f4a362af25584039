"""All SQL of the gate: one module a table family, numbered migrations, and the embedded server."""

from qgate.store.database import Listener, Store, StoreUnavailableError

__all__ = ["Listener", "Store", "StoreUnavailableError"]
