"""A crash-safe change of an ordinary folder, in five verbs: stage, prepare, decide, apply, finish.

1. :class:`Staging` takes the new files; ``tree.flush()`` makes them durable.
2. :func:`write_prepared` writes what is to be done; :func:`decide` commits it.
3. :func:`apply` does it by renames, as often as crashes demand.
4. :func:`finish` flushes, and removes the journal and what is not needed.

After a crash :func:`read_journal` says where things stand: None, the
transaction never was (:func:`sweep` removes what is left of it); PREPARED,
:func:`discard_prepared` or :func:`decide`; DECIDED, :func:`apply` and
:func:`finish`.
"""

from __future__ import annotations

from protocol.tree.actions import (
    AREA,
    JOURNAL_DECIDED,
    JOURNAL_PREPARED,
    OBJECTS,
    REPLACED,
    RESCUED,
    STAGING,
    TMP,
    TRASH,
    Action,
    Expected,
    Staged,
)
from protocol.tree.apply import apply
from protocol.tree.finish import finish
from protocol.tree.journal import (
    Journal,
    JournalState,
    decide,
    discard_prepared,
    read_journal,
    write_prepared,
)
from protocol.tree.report import Applied, Held, Phase, Unexpected
from protocol.tree.staging import SourceChangedError, Staging, remove_all, sweep

__all__ = [
    "AREA",
    "JOURNAL_DECIDED",
    "JOURNAL_PREPARED",
    "OBJECTS",
    "REPLACED",
    "RESCUED",
    "STAGING",
    "TMP",
    "TRASH",
    "Action",
    "Applied",
    "Expected",
    "Held",
    "Journal",
    "JournalState",
    "Phase",
    "SourceChangedError",
    "Staged",
    "Staging",
    "Unexpected",
    "apply",
    "decide",
    "discard_prepared",
    "finish",
    "read_journal",
    "remove_all",
    "sweep",
    "write_prepared",
]
