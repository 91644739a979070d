"""The ZFS backend: a clone is the transaction, a snapshot the version, a property the decision."""
