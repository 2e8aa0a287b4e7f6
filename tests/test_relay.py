"""relay: who is a sender and who a receiver, and when a file may leave the queue."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from protocols.options import EACH, KIND
from protocols.relay import SPEC, TURN, Relay
from protocols.relay_delivery import LOOK, Delivery
from protocols.relay_options import Options
from protocols.stores import Allowance, Label, Shelved, Source, StoreError, Stores
from tests.wire import House, MemoryGauge, MemoryKernel, Peer


@define(eq=False)
class MemoryParcel:
    """pace: bytes a `send` writes before it waits for `go_on`; None: all of them."""

    depot: MemoryDepot
    ident: int
    data: bytes
    deliveries: int = 0
    sent: int = 0
    claimed: bool = False
    most: int = 0
    _transport: Any = None
    _sending: Deferred[None] | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def send(self, transport: Any, head: bytes = b"", watch: bool = True) -> Deferred[None]:
        assert self.claimed
        self.sent, self._transport, self._sending = 0, transport, Deferred()
        sending = self._sending
        self.go_on(self.size if self.depot.pace is None else self.depot.pace)
        return sending

    def go_on(self, count: int) -> None:
        assert self._sending is not None
        self._transport.write(self.data[self.sent : self.sent + count])
        self.sent = min(self.size, self.sent + count)
        if self.sent == self.size:
            self._sending.callback(None)

    def spoil(self) -> None:
        assert self._sending is not None
        self._sending.errback(StoreError("disk error"))

    def done(self) -> Deferred[None]:
        assert self.claimed
        self.claimed = False
        self.depot.done.append(self.data)
        return self.depot.change()

    def release(self, counted: bool = False, park: bool = False) -> Deferred[bool]:
        assert self.claimed
        self.claimed = False
        self.deliveries += counted
        self.depot.given_back.append((self.data, counted))
        if park or (counted and self.deliveries >= self.most):
            self.depot.parked.append(self.data)
        else:
            self.depot.put(self)
        return self.depot.change().addCallback(lambda _: park)


@define(eq=False)
class MemoryDeposit:
    depot: MemoryDepot
    source: Source
    data: bytes = b""
    fate: str = ""
    kept: Deferred[Shelved] | None = None
    parked: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    def lend(self, transport: Any, most: int | None = None) -> bool:
        return False

    def write(self, data: bytes) -> None:
        assert not self.fate
        self.data += data

    def commit(self, parked: bool = False) -> Deferred[Shelved]:
        assert not self.fate
        self.fate, self.kept, self.parked = "committed", Deferred(), parked
        kept = self.kept
        if self.depot.trouble:
            self.kept.errback(StoreError("disk full"))
        elif not self.depot.slow:
            self.store()
        return kept

    def store(self) -> None:
        assert self.kept is not None
        ticket = self.depot.add(self.data, self.parked)
        self.kept.callback(ticket)

    def abort(self) -> None:
        assert not self.fate
        self.fate = "aborted"


@define(eq=False)
class MemoryDepot:
    pace: int | None = None
    slow: bool = False  # a commit waits for `store`
    trouble: bool = False
    queue: list[MemoryParcel] = field(factory=list)
    waiters: list[tuple[Deferred[Any], int]] = field(factory=list)
    deposits: list[MemoryDeposit] = field(factory=list)
    labels: list[Label] = field(factory=list)
    receivers: list[str] = field(factory=list)
    done: list[bytes] = field(factory=list)
    parked: list[bytes] = field(factory=list)
    given_back: list[tuple[bytes, bool]] = field(factory=list)
    last: int = 0

    @property
    def waiting(self) -> list[bytes]:
        return [parcel.data for parcel in self.queue]

    def change(self) -> Deferred[None]:
        return fail(StoreError("disk full")) if self.trouble else succeed(None)

    def add(self, data: bytes, parked: bool = False) -> Shelved:
        self.last += 1
        if parked:
            self.parked.append(data)
        else:
            self.put(MemoryParcel(self, self.last, data))
        return Shelved(
            str(self.last), "queue", "", len(data), "", "", None, 0, "waiting", len(data)
        )

    def put(self, parcel: MemoryParcel) -> None:
        self.queue = sorted([*self.queue, parcel], key=lambda one: one.ident)
        if self.waiters:
            waiter, most = self.waiters.pop(0)
            waiter.callback(self.pop(most))

    def pop(self, most: int) -> MemoryParcel:
        parcel = self.queue.pop(0)
        parcel.claimed, parcel.most = True, most
        return parcel

    def take(self, box: str, most: int, wait: bool = True, receiver: str = "") -> Deferred[Any]:
        self.receivers.append(receiver)
        if self.trouble:
            return fail(StoreError("disk error"))
        if self.queue or not wait:
            return succeed(self.pop(most) if self.queue else None)

        def withdraw(waiter: Deferred[Any]) -> None:
            self.waiters = [one for one in self.waiters if one[0] is not waiter]

        waiter: Deferred[Any] = Deferred(withdraw)
        self.waiters.append((waiter, most))
        return waiter

    def on_complete(self, command: object) -> None: ...

    def deposit(
        self, box: str, source: Source, label: Label, allowance: Allowance
    ) -> MemoryDeposit:
        self.labels.append(label)
        self.deposits.append(MemoryDeposit(self, source))
        return self.deposits[-1]

    def list(self, box: str) -> Deferred[Any]:
        found: tuple[Shelved, ...] = ()
        return succeed(found)


class RelayCase(SynchronousTestCase):
    """A relay with memory below it; every gauge and every timer must be gone at the end."""

    def setUp(self) -> None:
        self.depot = MemoryDepot()
        self.house = House(
            SPEC,
            stores=Stores(None, self.depot, None, None, None),  # type: ignore[arg-type]
        )
        self.clock, self.kernel = self.house.clock, self.house.kernel
        self.peers: list[Peer] = []

    def tearDown(self) -> None:
        for peer in self.peers:
            peer.resets()
        assert self.clock.getDelayedCalls() == []
        assert all(gauge.closed for gauge in self.kernel.gauges.values())
        assert not self.depot.waiters

    def peer(self) -> Peer:
        peer = self.house.peer()
        self.peers.append(peer)
        return peer

    def receiver(self) -> Peer:
        peer = self.peer()
        peer.waits(1.0)
        peer.waits(TURN)
        return peer

    def half_closed(self) -> Peer:
        """A receiver that only listens."""
        peer = self.peer()
        peer.ends()
        self.lasts(peer, 2 * TURN)
        return peer

    def sender(self, *chunks: bytes) -> Peer:
        peer = self.peer()
        peer.says(*chunks)
        peer.ends()
        return peer

    def gauge(self, peer: Peer) -> MemoryGauge:
        return self.kernel.gauge(peer.transport)

    def lasts(self, peer: Peer, seconds: float) -> None:
        """Time as it really passes: in small steps."""
        step = min(0.1, seconds / 2)
        for _ in range(round(seconds / step)):
            peer.waits(step)

    def outcomes(self) -> dict[str, int]:
        return dict(self.house.factories["PORT"].live.outcomes)

    def resets_on_close(self, peer: Peer) -> bool:
        """As the kernel would do if the process died now; on from the accept on."""
        return self.kernel.resets.get(peer.transport, True)


class SenderTests(RelayCase):
    def test_who_speaks_first_is_a_sender_and_its_fin_completes_the_file(self) -> None:
        ana = self.peer()
        ana.says(b"uno\n", b"dos \xff\x00")
        assert self.depot.waiting == []
        ana.ends()
        assert self.depot.waiting == [b"uno\ndos \xff\x00"]
        assert ana.hung_up
        assert ana.heard == b""
        assert ana.outcome == "sent"

    def test_our_fin_waits_until_the_file_is_durable(self) -> None:
        self.depot.slow = True
        ana = self.sender(b"x")
        ana.waits(600)
        assert not ana.hung_up
        assert self.resets_on_close(ana)
        self.depot.deposits[0].store()
        assert ana.transport.closed
        assert not self.resets_on_close(ana)

    def test_a_reset_discards_the_upload(self) -> None:
        ana = self.peer()
        ana.says(b"part")
        ana.resets()
        assert self.depot.deposits[0].fate == "aborted"
        assert self.outcomes() == {"reset": 1}
        assert ana.connection.detail == "its upload was dropped"

    def test_a_reset_after_the_fin_discards_nothing(self) -> None:
        self.depot.slow = True
        ana = self.sender(b"whole")
        ana.resets()
        self.depot.deposits[0].store()
        assert self.depot.waiting == [b"whole"]
        assert (ana.outcome, ana.connection.detail) == ("reset", "its upload was whole")

    def test_a_sender_may_pause_for_as_long_as_it_likes(self) -> None:
        ana = self.peer()
        ana.says(b"a")
        ana.waits(3600)
        ana.says(b"b")
        ana.ends()
        assert self.depot.waiting == [b"ab"]

    def test_files_queue_in_the_order_in_which_their_uploads_complete(self) -> None:
        ana, bob = self.peer(), self.peer()
        ana.says(b"A")
        bob.says(b"B")
        bob.ends()
        ana.says(b"A")
        ana.ends()
        assert self.depot.waiting == [b"B", b"AA"]

    def test_what_could_not_be_stored_is_answered_by_a_reset(self) -> None:
        self.depot.trouble = True
        ana = self.sender(b"x")
        assert ana.transport.reset
        assert (ana.outcome, ana.connection.detail) == ("unstored", "disk full")

    def test_a_depot_that_breaks_during_the_upload_resets_the_sender(self) -> None:
        ana = self.peer()
        ana.says(b"x")
        self.depot.deposits[0].source.broken(StoreError("disk full"))
        ana.transport.settle()
        assert ana.transport.reset
        assert self.depot.deposits[0].fate == ""  # neither committed nor aborted: it is over
        assert (ana.outcome, ana.connection.detail) == ("unstored", "disk full")

    def test_a_store_that_fails_in_another_way_is_shown_whole(self) -> None:
        self.depot.slow = True
        ana = self.sender(b"x")
        assert self.depot.deposits[0].kept is not None
        self.depot.deposits[0].kept.errback(ZeroDivisionError("a defect"))
        ana.transport.settle()
        assert ana.transport.reset
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_a_sender_is_paused_while_the_disk_is_behind(self) -> None:
        ana = self.peer()
        ana.says(b"x")
        self.depot.deposits[0].source.pauseProducing()
        assert not ana.transport.reading
        self.depot.deposits[0].source.resumeProducing()
        assert ana.transport.reading


class ReceiverTests(RelayCase):
    def test_who_is_silent_for_a_second_gets_the_oldest_file(self) -> None:
        self.depot.add(b"old")
        self.depot.add(b"new")
        rita = self.peer()
        rita.waits(1.0)
        assert rita.heard == b""
        rita.waits(TURN)
        assert rita.heard == b"old"
        assert rita.transport.fin
        assert self.depot.waiting == [b"new"]

    def test_silence_is_as_long_as_the_options_say(self) -> None:
        self.house.set(receiver_after=0.05)
        self.depot.add(b"x")
        rita = self.peer()
        rita.waits(0.05)
        rita.waits(TURN)
        assert rita.heard == b"x"

    def test_what_came_while_the_reactor_was_busy_still_makes_a_sender(self) -> None:
        self.depot.add(b"theirs")
        ana = self.peer()
        ana.waits(30)  # the timer is due, and only then is the socket looked at
        ana.says(b"mine")
        ana.waits(TURN)
        assert ana.heard == b""
        ana.ends()
        assert self.depot.waiting == [b"theirs", b"mine"]

    def test_a_receiver_waits_for_the_next_file(self) -> None:
        rita, rosa = self.receiver(), self.receiver()
        rita.waits(3600)
        self.sender(b"one")
        self.sender(b"two")
        assert (rita.heard, rosa.heard) == (b"one", b"two")

    def test_one_that_half_closes_is_served_at_once(self) -> None:
        self.depot.add(b"for nc")
        rita = self.half_closed()
        assert rita.heard == b"for nc"
        assert rita.transport.closed
        assert self.depot.done == [b"for nc"]
        assert rita.outcome == "received"

    def test_one_that_half_closes_is_served_now_or_not_at_all(self) -> None:
        rita = self.half_closed()
        assert rita.transport.closed
        assert not self.resets_on_close(rita)
        assert rita.outcome == "nothing"

    def test_a_fin_that_was_there_before_that_of_a_half_closed_one_is_read_before(self) -> None:
        ana, rita = self.peer(), self.peer()
        ana.says(b"x")
        rita.ends()  # as when both came while the reactor was busy
        rita.waits(30)
        ana.ends()
        rita.waits(TURN)
        assert rita.heard == b"x"

    def test_one_that_half_closes_while_it_waits_gets_fin(self) -> None:
        rita = self.receiver()
        rita.ends()
        self.lasts(rita, 2 * TURN)
        assert rita.transport.closed
        assert rita.outcome == "nothing"
        self.sender(b"later")
        assert self.depot.waiting == [b"later"]

    def test_where_nobody_gets_a_file_twice_its_address_is_its_name(self) -> None:
        for settings, name, copies in (
            ({}, "", 1),
            ({"copies": 3}, "127.0.0.1", 3),
            ({"mode": "shared"}, "127.0.0.1", 0),
        ):
            self.house.set(**settings)
            self.sender(b"x")
            self.receiver().ends()
            assert (self.depot.receivers[-1], self.depot.labels[-1].copies) == (name, copies)

    def test_a_receiver_that_leaves_takes_its_place_with_it(self) -> None:
        rita, rosa = self.receiver(), self.receiver()
        rita.resets()
        self.sender(b"x")
        assert rosa.heard == b"x"

    def test_the_file_leaves_when_the_receivers_fin_comes_and_all_was_acknowledged(self) -> None:
        self.depot.add(b"x")
        rita = self.receiver()
        rita.waits(30)
        assert self.depot.done == []
        rita.ends()
        assert self.depot.done == [b"x"]
        assert rita.transport.closed
        assert rita.outcome == "received"

    def test_acknowledgements_may_still_be_under_way_when_the_fin_comes(self) -> None:
        self.depot.add(b"12345")
        rita = self.receiver()
        self.gauge(rita).acked = 3
        rita.ends()
        assert self.depot.done == []
        self.gauge(rita).acked = 5  # all but our FIN
        rita.waits(LOOK)
        assert self.depot.done == []
        self.gauge(rita).acked = 6
        rita.waits(LOOK)
        assert self.depot.done == [b"12345"]

    def test_our_fin_alone_being_confirmed_is_not_enough(self) -> None:
        """A transport may say too early that its FIN is out: then nothing is outstanding, yet."""
        self.depot.add(b"12345")
        rita = self.receiver()
        gauge = self.gauge(rita)
        gauge.acked = 3
        self.patch(MemoryGauge, "outstanding", lambda gauge: 0)
        rita.ends()
        assert self.depot.done == []
        gauge.acked = 6
        rita.waits(LOOK)
        assert self.depot.done == [b"12345"]

    def test_where_the_system_does_not_tell_the_fin_is_believed(self) -> None:
        self.depot.add(b"x")
        rita = self.receiver()
        self.patch(MemoryGauge, "acknowledged", lambda gauge: None)
        self.patch(MemoryGauge, "outstanding", lambda gauge: 0)
        rita.ends()
        assert self.depot.done == [b"x"]

    def test_one_that_stays_open_is_believed_after_the_lease(self) -> None:
        self.depot.add(b"x")
        rita = self.receiver()
        rita.waits(59.9)
        assert self.depot.done == []
        rita.waits(0.2)
        assert self.depot.done == [b"x"]
        assert rita.transport.closed
        assert rita.outcome == "received"

    def test_its_lease_begins_when_all_is_acknowledged_and_lasts_hardly_longer(self) -> None:
        self.depot.add(b"12345")
        rita = self.peer()
        self.gauge(rita).acked = 3
        self.lasts(rita, 40)
        self.gauge(rita).acked = 6
        self.lasts(rita, 59.9)
        assert self.depot.done == []
        self.lasts(rita, 0.1 + 60 / Delivery.LOOKS)
        assert self.depot.done == [b"12345"]

    def test_a_reset_gives_the_file_back_to_the_head(self) -> None:
        self.depot.add(b"first")
        self.depot.add(b"second")
        rita = self.receiver()
        rita.resets()
        assert self.depot.given_back == [(b"first", True)]
        assert self.depot.waiting == [b"first", b"second"]
        assert rita.outcome == "reset"
        assert rita.connection.detail == "file 1 was given back"

    def test_a_reset_of_a_peer_that_had_half_closed_is_found(self) -> None:
        self.depot.add(b"x")
        rita = self.peer()
        self.gauge(rita).acked = 0
        rita.ends()
        self.lasts(rita, 2 * TURN)
        assert rita.heard == b"x"
        rita.waits(LOOK)
        assert not rita.transport.reset
        self.gauge(rita).broken = True
        rita.waits(LOOK)
        assert rita.transport.reset
        assert self.depot.waiting == [b"x"]
        assert rita.outcome == "reset"

    def test_a_reset_counts_more_than_acknowledgements_that_came_before_it(self) -> None:
        self.depot.add(b"x")
        rita = self.peer()
        self.gauge(rita).acked = 0
        rita.ends()
        self.lasts(rita, 2 * TURN)
        self.gauge(rita).acked, self.gauge(rita).broken = 2, True
        rita.waits(LOOK)
        assert self.depot.done == []
        assert self.depot.given_back == [(b"x", True)]

    def test_no_progress_for_the_lease_gives_it_back(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        self.gauge(rita).acked = 2
        self.lasts(rita, 50)
        self.gauge(rita).acked = 3
        self.lasts(rita, 59.9)
        assert not rita.transport.reset
        self.lasts(rita, 0.1 + 60 / Delivery.LOOKS)
        assert rita.transport.reset
        assert self.depot.given_back == [(b"12345", True)]
        assert rita.outcome == "stuck"

    def test_unacknowledged_bytes_after_the_fin_are_given_back_after_the_lease(self) -> None:
        self.depot.add(b"12345")
        rita = self.receiver()
        self.gauge(rita).acked = 3
        rita.ends()
        rita.waits(LOOK)
        for _ in range(1210):
            rita.waits(LOOK)
        assert self.depot.waiting == [b"12345"]
        assert rita.outcome == "stuck"

    def test_progress_of_a_slow_one_is_enough(self) -> None:
        self.depot.pace = 1
        self.depot.add(b"1234")
        rita = self.receiver()
        parcel = rita.connection._delivery.parcel  # type: ignore[attr-defined]
        for _ in range(3):
            rita.waits(50)
            parcel.go_on(1)
        rita.transport.settle()
        rita.ends()
        assert self.depot.done == [b"1234"]

    def test_fin_in_the_middle_of_the_file_stops_nothing(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        parcel = rita.connection._delivery.parcel  # type: ignore[attr-defined]
        rita.ends()
        parcel.go_on(3)
        assert rita.heard == b"12345"
        assert self.depot.done == [b"12345"]

    def test_the_process_may_die_only_once_the_last_byte_is_with_the_kernel(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        parcel = rita.connection._delivery.parcel  # type: ignore[attr-defined]
        assert self.resets_on_close(rita)
        parcel.go_on(3)
        assert self.resets_on_close(rita)  # for the transport may still hold it
        rita.transport.settle()
        assert not self.resets_on_close(rita)

    def test_a_connect_and_close_costs_the_file_nothing(self) -> None:
        self.depot.add(b"x")
        self.house.set(max_deliveries=1)
        for _ in range(3):
            probe = self.receiver()
            self.gauge(probe).acked = 0
            probe.resets()
        assert self.depot.waiting == [b"x"]
        assert [counted for _, counted in self.depot.given_back] == [False] * 3

    def test_deliveries_that_break_off_are_capped(self) -> None:
        self.depot.add(b"bad")
        self.depot.add(b"good")
        for _ in range(5):
            rita = self.receiver()
            assert rita.heard == b"bad"
            rita.resets()
        assert self.depot.parked == [b"bad"]
        assert self.receiver().heard == b"good"

    def test_a_file_that_cannot_be_read_resets_its_receiver_and_counts(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        self.gauge(rita).acked = 0
        rita.connection._delivery.parcel.spoil()  # type: ignore[attr-defined]
        rita.transport.settle()
        assert rita.transport.reset
        assert rita.outcome == "unread"
        assert rita.connection.detail == "file 1: disk error"
        assert self.depot.given_back == [(b"12345", True)]

    def test_a_queue_that_cannot_be_read_resets_its_receivers(self) -> None:
        self.depot.trouble = True
        rita = self.receiver()
        assert rita.transport.reset
        assert (rita.outcome, rita.connection.detail) == ("unread", "disk error")

    def test_a_removal_that_fails_is_said_in_the_log(self) -> None:
        self.depot.add(b"x")
        rita = self.receiver()
        self.depot.trouble = True
        rita.ends()
        assert rita.outcome == "received"

    def test_a_count_that_fails_is_said_in_the_log(self) -> None:
        self.depot.add(b"x")
        rita = self.receiver()
        self.depot.trouble = True
        rita.resets()
        assert self.depot.waiting == [b"x"]

    def test_without_a_descriptor_for_the_gauge_the_file_stays_in_the_queue(self) -> None:
        def gauge(kernel: MemoryKernel, transport: Any) -> MemoryGauge:
            raise OSError(24, "Too many open files")

        self.patch(MemoryKernel, "gauge", gauge)
        self.depot.add(b"x")
        rita = self.receiver()
        assert rita.transport.reset
        assert rita.outcome == "busy"
        assert self.depot.given_back == [(b"x", False)]


class SlowSenderTests(RelayCase):
    def handed(self) -> Peer:
        """A sender that was slow to speak: it was handed a file."""
        self.depot.add(b"theirs")
        return self.receiver()

    def test_a_receiver_that_still_waits_may_become_an_ordinary_sender(self) -> None:
        sam = self.receiver()
        sam.says(b"mine")
        self.depot.add(b"theirs")
        assert sam.heard == b""
        sam.resets()
        assert self.depot.deposits[0].fate == "aborted"

    def test_what_it_was_handed_goes_back_uncounted_and_its_upload_is_taken(self) -> None:
        sam = self.handed()
        self.depot.add(b"second")
        sam.says(b"mine")
        assert self.depot.given_back == [(b"theirs", False)]
        assert self.depot.waiting == [b"theirs", b"second"]
        sam.ends()
        assert self.depot.waiting == [b"theirs", b"second", b"mine"]
        assert sam.transport.closed
        assert sam.outcome == "sent"

    def test_sending_stops_when_it_speaks(self) -> None:
        self.depot.pace = 2
        sam = self.handed()
        sam.says(b"mine")
        sam.waits(120)
        assert sam.heard == b"th"
        assert not sam.hung_up

    def test_its_reset_parks_the_upload_for_it_may_be_cut(self) -> None:
        sam = self.handed()
        sam.says(b"min")
        sam.resets()
        assert self.depot.parked == [b"min"]
        assert self.depot.waiting == [b"theirs"]
        assert sam.connection.detail == "its upload was parked"

    def test_one_that_was_handed_no_byte_yet_is_an_ordinary_sender(self) -> None:
        self.depot.pace = 0
        sam = self.handed()
        sam.says(b"min")
        sam.resets()
        assert self.depot.parked == []
        assert self.depot.deposits[0].fate == "aborted"

    def test_its_upload_is_not_kept_when_the_daemon_cuts_it(self) -> None:
        sam = self.handed()
        sam.says(b"min")
        sam.connection.abort("cut")
        sam.transport.settle()
        assert self.depot.parked == []
        assert self.depot.deposits[0].fate == "aborted"

    def test_until_its_upload_is_kept_a_killed_daemon_resets_it_again(self) -> None:
        sam = self.handed()
        assert not self.resets_on_close(sam)
        sam.says(b"mine")
        assert self.resets_on_close(sam)
        sam.ends()
        assert not self.resets_on_close(sam)

    def test_one_that_never_reads_what_it_was_handed_is_cut_after_the_lease(self) -> None:
        sam = self.handed()
        sam.says(b"mine")
        self.patch(type(sam.transport), "loseConnection", lambda transport: None)
        sam.ends()
        sam.waits(59)
        assert not sam.transport.reset
        sam.waits(1)
        assert sam.transport.reset
        assert sam.outcome == "sent"

    def test_a_parked_upload_that_cannot_be_stored_is_no_error_of_ours(self) -> None:
        sam = self.handed()
        sam.says(b"min")
        self.depot.trouble = True
        sam.resets()
        assert self.depot.parked == []

    def test_fin_that_goes_out_late_disturbs_the_upload_in_no_way(self) -> None:
        sam = self.handed()
        sam.says(b"mi")
        sam.connection.writeConnectionLost()
        sam.says(b"ne")
        sam.ends()
        assert self.depot.waiting == [b"theirs", b"mine"]


class DrainTests(RelayCase):
    def drain(self, grace: float = 10) -> Deferred[None]:
        drained = Deferred.fromCoroutine(self.house.factories["PORT"].live.drain(grace))
        self.settle()
        return drained

    def settle(self) -> None:
        for peer in self.peers:
            peer.transport.settle()

    def test_who_is_silent_or_waits_is_reset_at_once(self) -> None:
        silent = self.peer()
        waiting = self.receiver()
        drained = self.drain()
        assert silent.transport.reset
        assert waiting.transport.reset
        assert self.outcomes() == {"drained": 2}
        self.successResultOf(drained)

    def test_a_sender_may_finish(self) -> None:
        ana = self.peer()
        ana.says(b"a")
        drained = self.drain()
        ana.waits(5)
        ana.says(b"b")
        self.depot.slow = True
        ana.ends()
        self.assertNoResult(drained)
        self.depot.deposits[0].store()
        self.settle()
        assert self.depot.waiting == [b"ab"]
        self.successResultOf(drained)

    def test_who_waits_and_is_reset_gives_up_its_place_at_once(self) -> None:
        rita = self.receiver()
        drain = Deferred.fromCoroutine(self.house.factories["PORT"].live.drain(10))
        self.depot.add(b"x")  # before the transport has told that it is gone
        assert self.depot.waiting == [b"x"]
        self.settle()
        assert rita.heard == b""
        self.successResultOf(drain)

    def test_who_is_closing_already_still_gets_fin(self) -> None:
        self.depot.slow = True
        ana = self.sender(b"x")
        self.patch(type(ana.transport), "loseConnection", lambda transport: None)
        self.depot.deposits[0].store()
        rita = self.half_closed()
        assert (ana.outcome, rita.heard) == ("sent", b"x")
        drained = self.drain()
        assert not ana.transport.reset
        assert not rita.transport.reset
        self.assertNoResult(drained)
        drained.cancel()
        self.failureResultOf(drained)

    def test_an_upload_that_is_being_stored_is_waited_for(self) -> None:
        self.depot.slow = True
        ana = self.sender(b"x")
        drained = self.drain()
        assert not ana.hung_up
        self.depot.deposits[0].store()
        self.settle()
        assert ana.outcome == "sent"
        self.successResultOf(drained)

    def test_after_the_grace_an_upload_is_dropped_and_a_delivery_given_back(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        ana = self.peer()
        ana.says(b"a")
        drained = self.drain(10)
        assert not rita.transport.reset
        self.clock.advance(10)
        self.settle()
        assert self.depot.given_back == [(b"12345", True)]
        assert self.depot.deposits[0].fate == "aborted"
        assert self.outcomes() == {"cut": 2}
        self.successResultOf(drained)

    def test_a_delivery_may_finish(self) -> None:
        self.depot.pace = 2
        self.depot.add(b"12345")
        rita = self.receiver()
        parcel = rita.connection._delivery.parcel  # type: ignore[attr-defined]
        drained = self.drain(10)
        parcel.go_on(3)
        rita.transport.settle()
        rita.ends()
        assert self.depot.done == [b"12345"]
        self.successResultOf(drained)


class SpecTests(SynchronousTestCase):
    def test_it_listens_where_a_killed_daemon_resets(self) -> None:
        port, _ = SPEC.ports
        assert (port.key, port.number, port.resets) == ("PORT", 5011, True)

    def test_options_have_limits(self) -> None:
        kinds = {one.name: one.metadata[KIND] for one in attrs.fields(Options)}
        assert kinds["receiver_after"]("250 ms") == 0.25
        for name, wrong in (
            ("receiver_after", "0"),
            ("receiver_after", "2 min"),
            ("lease", "0"),
            ("max_deliveries", "0"),
        ):
            with pytest.raises(ValueError, match="too"):
                kinds[name](wrong)

    def test_a_token_is_for_a_name_that_a_box_can_have(self) -> None:
        named = attrs.fields(Options).token.metadata[EACH]
        assert named("my-box") == "my-box"
        for wrong in ("my_box", "tus", "next", "", "b" * 65):
            with pytest.raises(ValueError, match="a box is 1 to 64 of"):
                named(wrong)

    def test_every_outcome_is_named_in_the_specification(self) -> None:
        import protocols.relay

        text = (protocols.relay.__doc__ or "").split("Outcomes", 1)[1]
        for outcome in Relay.ORDINARY | {"reset", "stuck", "unread", "unstored", "busy", "cut"}:
            assert outcome in text
