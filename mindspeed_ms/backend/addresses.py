# SPDX-License-Identifier: Apache-2.0
"""Which network the ranks of a job use: the loopback interface, or the card that finds the others.

MPI's own choice is every card of the host, also one that leads nowhere.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from mindspeed_ms.backend import env


def is_loopback(address: str) -> bool:
    """Whether an address, or what a name stands for, is this host's alone."""
    try:
        return ipaddress.ip_address(resolve(address)).is_loopback
    except (OSError, ValueError):
        return False


def resolve(name: str) -> str:
    """The address a name stands for.

    Raises:
        OSError: nobody knows it.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def own_addresses() -> list[str]:
    """Addresses of this host that others may know, IPv4 first."""
    families = (socket.AF_INET, socket.AF_INET6)
    cards = psutil.net_if_addrs()
    states = psutil.net_if_stats()
    found = [
        entry.address
        for family in families
        for card, entries in cards.items()
        for entry in entries
        if entry.family == family and states[card].isup and "%" not in entry.address
    ]
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def is_own(address: str) -> bool:
    """Whether an address is one of this host."""
    return is_loopback(address) or address in own_addresses()


def towards(address: str) -> str:
    """This host's own address on the way to another one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        return str(probe.getsockname()[0])


def card_of(address: str) -> str | None:
    """Name of the network interface that has an address."""
    for card, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return card
    return None


def confine_mpi(is_one_host: bool, address: str = "") -> None:
    """Tell MPI, before it starts, which network to use; what the user has set stays.

    Args:
        is_one_host: all ranks share this host: then shared memory does, and no port is opened.
        address: otherwise, this host's address as the other hosts see it.
    """
    card = card_of("127.0.0.1" if is_one_host else address)
    if is_one_host:
        env.set_default("UCX_TLS", "self,sm")
    if card is not None:
        env.set_default("UCX_NET_DEVICES", card)
        env.set_default("FI_TCP_IFACE", card)
