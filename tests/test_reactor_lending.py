"""Lending a connection's socket to a thread, on Twisted's own reactor and on ours."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost

from daemon.reactor.lending import Loan, NotLendable, lend
from tests.reactors import BIG, PATIENCE, Halves, Net, OnOurs, OnTwisted, Pushed, driven


class Lender(Halves):
    """Lends its socket when it hears LEND."""

    loan: Loan | None = None

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if data.endswith(b"LEND"):
            self.loan = lend(self.transport)
            self.loan.socket.settimeout(PATIENCE)


class Lending:
    """A loan, and what happens meanwhile."""

    async def lent(self, net: Net) -> tuple[Any, Any]:
        lender, peer = await net.pair(Lender)
        peer.send(b"LEND")
        await net.until(lambda: lender.loan)
        return lender, peer

    @driven
    async def test_bytes_before_during_and_after_are_in_order(self, net: Net) -> None:
        lender, peer = await net.pair(Lender)
        for turn in range(3):
            peer.send(b"%d LEND" % turn)
            await net.until(lambda t=turn: lender.got.endswith(b"%d LEND" % t))
            peer.send(b"for the thread")
            await net.a_while(0.01)
            assert await net.in_thread(lambda: lender.loan.socket.recv(7)) == b"for the"
            peer.send(b", more")
            lender.loan.give_back()
            await net.until(lambda: lender.got.endswith(b", more"))
        assert lender.got == b"".join(b"%d LEND thread, more" % turn for turn in range(3))

    @driven
    async def test_a_thread_that_finds_nothing_is_told_so(self, net: Net) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            watch, peer = await net.pair(Halves, family=family)
            loan = lend(watch.transport)
            assert not os.get_blocking(watch.transport.fileno()), "the reactor's never blocks"
            with pytest.raises(BlockingIOError):
                loan.socket.recv(10)
            loan.give_back()
            peer.send(b"late")
            await net.until(lambda w=watch: w.got == b"late")

    @driven
    async def test_the_end_a_thread_saw_is_told_once_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        peer.send(b"rest")
        peer.ends()
        await net.until(lambda: lender.loan.socket.recv(10) == b"rest")
        assert lender.loan.socket.recv(10) == b""
        await net.a_while()
        assert lender.events == ["made", "data"]
        lender.loan.give_back()
        assert lender.events == ["made", "data"], "never from inside the call"
        await net.until(lambda: "read lost" in lender.events)
        lender.transport.write(b"receipt")
        lender.transport.loseConnection()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"receipt"
        await net.until(lambda: lender.reason)
        assert lender.events == ["made", "data", "read lost", "lost"]

    @driven
    async def test_the_end_that_was_told_before_is_not_told_again(self, net: Net) -> None:
        halves, peer = await net.pair(Halves)
        peer.ends()
        await net.until(lambda: "read lost" in halves.events)
        loan = lend(halves.transport)
        loan.socket.send(b"a file")
        loan.give_back()
        await net.a_while()
        assert halves.events == ["made", "read lost"]
        assert peer.heard == b"a file"
        halves.transport.loseConnection()
        await net.until(lambda: halves.reason)

    @driven
    async def test_a_reset_a_thread_saw_is_told_once_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.loseConnection()
        peer.resets()
        with pytest.raises(ConnectionResetError):
            await net.in_thread(lambda: lender.loan.socket.recv(10))
        assert lender.reason is None
        lender.loan.give_back(reset=True)
        assert lender.reason is None
        await net.until(lambda: lender.reason)
        assert isinstance(lender.reason, ConnectionLost)
        assert lender.events == ["made", "data", "lost"]

    @driven
    async def test_a_reset_nobody_saw_is_found_afterwards(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        peer.resets()
        await net.a_while()
        assert lender.reason is None
        lender.loan.give_back()
        await net.until(lambda: isinstance(lender.reason, ConnectionLost))

    @driven
    async def test_a_close_waits_until_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.write(b"bye")
        lender.transport.loseConnection()
        await net.a_while()
        assert peer.heard == b"bye"
        assert not peer.fin
        peer.send(b"the thread goes on")
        assert await net.in_thread(lambda: lender.loan.socket.recv(10)) == b"the thread"
        lender.loan.give_back()
        await net.until(lambda: lender.reason)
        assert isinstance(lender.reason, ConnectionDone)
        assert lender.got == b"LEND"

    @driven
    async def test_an_abort_waits_until_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.abortConnection()
        await net.a_while()
        assert not peer.reset
        lender.loan.give_back()
        await net.until(lambda: peer.reset and lender.reason)
        assert isinstance(lender.reason, ConnectionAborted)

    @driven
    async def test_a_half_close_waits_until_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.loseWriteConnection()
        await net.in_thread(lambda: lender.loan.socket.sendall(b"from the thread"))
        lender.loan.give_back()
        await net.until(lambda: peer.fin and "write lost" in lender.events)
        assert peer.heard == b"from the thread"
        lender.transport.loseConnection()

    @driven
    async def test_a_write_that_fails_meanwhile_is_told_once_it_is_back(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.registerProducer(pushed := Pushed(), True)
        lender.transport.write(bytes(BIG))
        await net.a_while()
        number = lender.loan.socket.fileno()
        peer.resets()
        await net.a_while()
        lender.transport.write(b"more")
        await net.a_while()
        assert lender.reason is None
        assert number == lender.loan.socket.fileno()
        os.fstat(number)
        lender.loan.give_back()
        await net.until(lambda: lender.reason)
        assert isinstance(lender.reason, ConnectionLost)
        assert pushed.told[-1] == "stop"

    @driven
    async def test_paused_meanwhile_it_stays_paused(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.pauseProducing()
        peer.send(b"later")
        lender.loan.give_back()
        await net.a_while()
        assert lender.got == b"LEND"
        lender.transport.resumeProducing()
        await net.until(lambda: lender.got == b"LENDlater")

    @driven
    async def test_resumed_meanwhile_it_reads_only_afterwards(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        lender.transport.pauseProducing()
        lender.transport.resumeProducing()
        peer.send(b"later")
        await net.a_while()
        assert lender.got == b"LEND"
        lender.loan.give_back()
        await net.until(lambda: lender.got == b"LENDlater")

    @driven
    async def test_lent_in_connectionMade_the_first_byte_is_the_threads(self, net: Net) -> None:
        loans: list[Loan] = []
        watch, peer = await net.pair(Halves, lambda w: loans.append(lend(w.transport)))
        loans[0].socket.settimeout(PATIENCE)
        peer.send(b"first")
        assert await net.in_thread(lambda: loans[0].socket.recv(10)) == b"first"
        loans[0].give_back()
        peer.send(b"second")
        await net.until(lambda: watch.got == b"second")

    @driven
    async def test_only_a_plain_socket_that_is_open_and_here_can_be_lent(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        with pytest.raises(NotLendable, match="lent already"):
            lend(lender.transport)
        with pytest.raises(NotLendable, match="no plain socket"):
            lend(lender)
        lender.loan.give_back()
        lender.transport.TLS = True
        with pytest.raises(NotLendable, match="TLS"):
            lend(lender.transport)
        lender.transport.TLS = False
        lender.transport.write(bytes(BIG))
        lender.transport.loseConnection()
        with pytest.raises(NotLendable, match="closing"):
            lend(lender.transport)
        await net.until(lambda: peer.fin)

    @driven
    async def test_a_stopping_reactor_leaves_a_lent_socket_alone(self, net: Net) -> None:
        lender, peer = await self.lent(net)
        net.reactor.disconnectAll()
        assert lender.reason is None
        peer.send(b"x")
        assert await net.in_thread(lambda: lender.loan.socket.recv(10)) == b"x"
        lender.loan.give_back()
        lender.transport.abortConnection()
        await net.until(lambda: isinstance(lender.reason, ConnectionLost | ConnectionAborted))


class TwistedLendingTests(Lending, OnTwisted):
    pass


class OurLendingTests(Lending, OnOurs):
    pass
