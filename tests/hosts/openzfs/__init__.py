"""OpenZFS in a Linux kernel: a virtual machine with a real sshd, on loopback. See :mod:`.guest`."""
