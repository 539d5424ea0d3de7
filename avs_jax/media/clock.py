"""One clock for a film: the packets of its picture and its sound, with time stamps to rely on.

A file's own stamps jump where recordings were joined, wrap after 26.5 hours of MPEG, go back where
a recorder was started again, repeat or are missing. Whoever reads pictures, samples or packets of
a film reads them through `read_packets`, so that all of them agree about when something happens.

A jump is closed as the `ffmpeg` program does for formats whose clock may be discontinuous
(`ts_discontinuity_process` in fftools/ffmpeg_demux.c): what follows goes on where the film was. All
streams move by the same time, so that picture and sound stay together over it: ffmpeg moves them
when the first of them jumps, here the packets are held until all of them did, and none goes back.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Sequence

import av

_log = logging.getLogger(__name__)

# Seconds. Formats that are made to be joined (MPEG-TS, MPEG-PS, Ogg: AVFMT_TS_DISCONT): ffmpeg's
# dts_delta_threshold and its tenth of a second. In others a pause of minutes is a pause.
_DISCONTINUOUS = 0x200
_JUMP, _BACK = 10.0, 0.1
_BACK_ELSEWHERE, _PAUSE = 0.5, 3600.0
_GAP = 1.0  # a longer step is looked at before it is believed
# What is held while a jump is looked at: streams are interleaved far closer than that.
_HELD_SECONDS, _HELD_PACKETS, _HELD_BYTES = 3.0, 4000, 2**27
_RECENT = 256  # packets of a stream, to know them by if they come again
_REORDERING = 10.0  # the farthest that a picture can be shown after it was decoded
_RETRIES = 8  # of a demuxer that fails without giving a packet


def demux(container, streams: Sequence, damage: list | None = None) -> Iterator[av.Packet]:
    """The packets of some streams in the order of the file, going on after damage.

    PyAV's own generator ends at the first error, and it fails with IndexError at the end of a file
    in which a stream turned up on the way (damaged MPEG-TS and FLV).

    Args:
      damage: gets the errors on the way.
    """
    failures = 0
    packets = container.demux(*streams)
    while failures <= _RETRIES:
        try:
            packet = next(packets, None)
        except (av.EOFError, IndexError):
            return
        except av.FFmpegError as error:
            failures += 1
            if damage is not None:
                damage.append(error)
            packets = container.demux(*streams)  # reads on where it was
            continue
        if packet is None:
            return
        if packet.size:  # the last ones are empty: PyAV's sign that a decoder be flushed
            failures = 0
            yield packet


def read_packets(
    container, streams: Sequence, report: bool = False, damage: list | None = None
) -> Iterator[av.Packet]:
    """The packets of a film's streams in the order of the file, all stamps on one clock.

    Where a file's own stamps are continuous they are kept to the tick. Packets of sound always have
    stamps; pictures may still have none (raw streams) or come at equal or falling times.

    Args:
      streams: the same ones for every reader of a film, or their clocks may differ.
      report: logs the jumps that were closed.
      damage: gets the errors on the way.
    """
    clock = _Clock(container, streams)
    yield from clock.run(demux(container, streams, damage))
    if report and clock.jumps:
        places = ", ".join(f"{jump:+.1f} s at {time:.1f} s" for time, jump in clock.jumps[:3])
        more = f" and {len(clock.jumps) - 3} more" if len(clock.jumps) > 3 else ""
        _log.warning("%s: its clock jumps (%s%s); closed.", container.name, places, more)


def close_jumps(container, streams: Sequence, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """As `read_packets`, of packets that the caller demultiplexes as he likes."""
    return _Clock(container, streams).run(packets)


@dataclasses.dataclass
class _Track:
    """What is known of one stream. Times in seconds; "raw" ones are those of the file."""

    stream: object
    step: float  # length of a packet that does not say
    end: float | None = None  # raw decoding time at which the next packet is due
    shift: float = 0.0  # of the one clock ahead of the raw one
    epoch: int = 0  # which of the file's clocks it follows
    until: float = 0.0  # how far it is presented on the one clock
    stamp: tuple = ()  # of the last packet that had one, in ticks
    recent: dict = dataclasses.field(default_factory=dict)  # stamp -> hash of the data

    def seconds(self, ticks: int) -> float:
        return float(ticks * self.stream.time_base)

    def decoding_time(self, packet) -> float | None:
        ticks = packet.dts if packet.dts is not None else packet.pts
        return None if ticks is None else self.seconds(ticks)

    def duration(self, packet) -> float:
        """What the packet says, unless that may be `step` rounded to the file's ticks."""
        length = self.seconds(packet.duration or 0)
        is_step = abs(length - self.step) <= self.stream.time_base
        return self.step if is_step or not length else length


@dataclasses.dataclass
class _Epoch:
    """One of the clocks of a file: from one jump to the next."""

    shift: float = 0.0
    last: float | None = None  # raw


class _Clock:
    def __init__(self, container, streams: Sequence):
        self._discontinuous = bool(container.format.flags & _DISCONTINUOUS)
        self._back = _BACK if self._discontinuous else _BACK_ELSEWHERE
        self._length = (container.duration or 0) / av.time_base
        self._tracks = {s.index: _Track(s, _packet_length(s)) for s in streams}
        self._epochs = [_Epoch()]
        self._movers: dict[int, int] = {}  # id of a track's first packet after a jump -> epoch
        self.jumps: list[tuple[float, float]] = []  # (when, by how much)

    def run(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        held: list[av.Packet] = []
        again: collections.deque[av.Packet] = collections.deque()  # held and let go
        while True:
            packet = again.popleft() if again else next(packets, None)
            if packet is not None:
                track = self._tracks[packet.stream.index]
                if not held:
                    if self._repeats(track, packet):
                        continue
                    if not self._strays(track, packet):
                        yield self._place(track, packet)
                        continue
                held.append(packet)
            elif not held:
                return
            # Only a packet of the stream that strays, and now and then another, can decide.
            decides = packet and (packet.stream is held[0].stream or len(held) % 64 == 0)
            if packet is None or (decides and self._can_judge(held)):
                self._judge(held)
                first, *rest = held
                held = []
                again.extendleft(reversed(rest))
                yield self._place(self._tracks[first.stream.index], first)

    def _repeats(self, track: _Track, packet) -> bool:
        """Whether a packet was there before: segments were joined that overlap.

        Of other packets of sound that have the stamp of the one before it is taken away.
        """
        time, stamp = track.decoding_time(packet), (packet.dts, packet.pts)
        if time is None or track.end is None:
            return False
        overlaps = -_GAP <= time - track.end < 0
        if overlaps and track.recent.get(stamp) == hash(bytes(packet)):
            return True
        if packet.stream.type == "audio" and stamp == track.stamp:
            packet.dts = packet.pts = None
        return False

    def _strays(self, track: _Track, packet) -> bool:
        """Whether a packet is not where it is due, nor where the file's clock has jumped to."""
        epoch = self._movers.pop(id(packet), None)
        if epoch is not None:
            self._follow(track, epoch, packet)
            return False
        time, newest = track.decoding_time(packet), self._epochs[-1]
        if time is None:
            return False
        if track.end is None:
            return True  # its first: the next one tells whether to believe it
        if self._is_due(time - track.end, track):
            return False
        is_behind = track.epoch < len(self._epochs) - 1
        if is_behind and abs(time - newest.last) <= _JUMP:
            self._follow(track, len(self._epochs) - 1, packet)
            return False
        return True

    def _is_due(self, step: float, track: _Track, ahead: float = _GAP) -> bool:
        return -max(self._back, 1.5 * track.step) <= step <= ahead

    def _follow(self, track: _Track, epoch: int, packet) -> None:
        track.epoch, track.shift = epoch, self._epochs[epoch].shift
        track.end = track.decoding_time(packet)

    def _is_jump(self, track: _Track, time: float) -> bool:
        """Whether a step is no pause but the clock's."""
        step = time - track.end
        if step < 0 or self._discontinuous:
            return not self._is_due(step, track, _JUMP)
        # The header's length tells pauses of a recording from stamps that are wrong.
        if self._length:
            return step > _JUMP and time + track.shift > self._length + _JUMP
        return step > _PAUSE

    def _returns(self, track: _Track, held: Sequence, time: float) -> bool | None:
        """Whether only the first held packet's stamp is wrong; None if that is not known yet."""
        after = self._next_time(track, held)
        if after is None:
            return None
        back = abs(after - track.end - track.step)
        return back < _GAP and back < abs(after - time - track.step)

    def _next_time(self, track: _Track, held: Sequence) -> float | None:
        """When the second of the held packets of a stream is decoded, if there is one."""
        own = (packet for packet in held[1:] if packet.stream is held[0].stream)
        return next((t for t in map(track.decoding_time, own) if t is not None), None)

    def _begin(self, track: _Track, held: Sequence) -> None:
        """Puts a stream's first packet on the newest clock."""
        first, newest = held[0], self._epochs[-1]
        time, after = track.decoding_time(first), self._next_time(track, held)
        self._follow(track, len(self._epochs) - 1, first)
        if after is not None and after < time and not self._is_due(after - time, track):
            time = track.end = max(0.0, after - track.step)
            first.pts = first.dts = round(time / first.stream.time_base)
        if self._discontinuous and newest.last is not None and abs(time - newest.last) > _JUMP:
            track.shift += newest.last - time  # a clock that wrapped between the two streams

    def _can_judge(self, held: Sequence) -> bool:
        track = self._tracks[held[0].stream.index]
        time = track.decoding_time(held[0])
        if len(held) >= _HELD_PACKETS or sum(packet.size for packet in held) > _HELD_BYTES:
            return True
        if track.end is None:
            return self._next_time(track, held) is not None
        returns = self._returns(track, held, time)
        if returns is None:
            return False
        if returns or not self._is_jump(track, time):
            return True
        begun = {index for index, other in self._tracks.items() if other.end is not None}
        if begun <= self._find_movers(held).keys():
            return True
        own = [p for p in held if p.stream.index == track.stream.index]
        latest = [t for t in map(track.decoding_time, own) if t is not None][-1]
        return not 0 <= latest - time < _HELD_SECONDS

    def _find_movers(self, held: Sequence) -> dict[int, av.Packet]:
        """For each stream that jumped with the first held packet, its first packet to do so."""
        first = held[0]
        track = self._tracks[first.stream.index]
        begin = track.decoding_time(first)
        jump = begin - track.end
        movers = {first.stream.index: first}
        ends = {index: other.end for index, other in self._tracks.items()}
        for packet in held[1:]:
            index, other = packet.stream.index, self._tracks[packet.stream.index]
            time = other.decoding_time(packet)
            if index in movers or time is None or ends[index] is None:
                continue
            step = time - ends[index]
            # What still follows the old clock comes when it is due, or nearly.
            if abs(time - begin) <= _JUMP and step / jump > 0.5:
                movers[index] = packet
            else:
                ends[index] = time + other.duration(packet)
        return movers

    def _judge(self, held: Sequence) -> None:
        """Makes the first held packet one that is where it is due."""
        first = held[0]
        track = self._tracks[first.stream.index]
        time = track.decoding_time(first)
        if track.end is None:
            self._begin(track, held)
            return
        if self._returns(track, held, time):
            first.pts = first.dts = None
            return
        if not self._is_jump(track, time):
            track.end = time
            return
        movers = self._find_movers(held)
        begun = {index for index, other in self._tracks.items() if other.end is not None}
        if begun - movers.keys() and abs(time - track.end) <= _GAP:
            track.end = time  # the others' clock went on: this one's packets overlap
            return
        shift = max(
            self._tracks[index].until - self._presented(index, packet, held)
            for index, packet in movers.items()
        )
        self.jumps.append((track.until, time - track.end))
        self._epochs.append(_Epoch(shift))
        for packet in movers.values():
            self._movers[id(packet)] = len(self._epochs) - 1
        self._strays(track, first)  # follows

    def _presented(self, index: int, first, held: Sequence) -> float:
        """Raw time at which a stream's first picture or sample after a jump is presented."""
        track = self._tracks[index]
        own = [p for p in held[_index(held, first) :] if p.stream.index == index]
        stamps = [p.pts for p in own[:16] if p.pts is not None]
        begin = track.decoding_time(first)
        if not stamps:
            return begin
        presented = track.seconds(min(stamps))
        return presented if abs(presented - begin) < _GAP else begin

    def _place(self, track: _Track, packet) -> av.Packet:
        """Puts a packet's stamps on the one clock."""
        is_sound = packet.stream.type == "audio"
        time = track.decoding_time(packet)
        if time is not None:
            track.stamp = (packet.dts, packet.pts)
            track.recent[track.stamp] = hash(bytes(packet))
            if len(track.recent) > _RECENT:
                del track.recent[next(iter(track.recent))]
        length = track.duration(packet)
        if time is None:
            time = track.end or 0.0
            if is_sound:
                packet.dts = packet.pts = round(time / packet.stream.time_base)
        if not is_sound and None not in (packet.pts, packet.dts):
            delay = track.seconds(packet.pts - packet.dts)
            packet.pts = packet.pts if -_GAP <= delay <= _REORDERING else None
        if track.shift:
            ticks = round(track.shift / packet.stream.time_base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        presented = time + track.shift if packet.pts is None else track.seconds(packet.pts)
        track.until = max(track.until, presented + length)
        track.end = time + length
        if track.epoch == len(self._epochs) - 1:
            self._epochs[-1].last = time
        return packet


def _packet_length(stream) -> float:
    context = stream.codec_context
    if stream.type == "video":
        return 1 / float(stream.average_rate or stream.guessed_rate or 25)
    if context is not None and context.sample_rate and context.frame_size:
        return context.frame_size / context.sample_rate
    return 0.02  # most codecs' packets


def _index(held: Sequence, packet) -> int:
    return next(i for i, other in enumerate(held) if other is packet)
