"""The chips one by one, each against its definition, by programs of a few bytes.

What a program does reaches Python as bytes of RAM, positions of objects and rows of the picture.
The definitions are those of ale-py's emulator: written here as tables and loops, as slowly as they
can be read.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import GAMES, Emulator, batch, compiled
from coordrl.emulator.settings import native_settings

native: Any = compiled.native()

# Addresses of registers.
VSYNC, WSYNC, NUSIZ0, COLUP0, COLUPF, COLUBK = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
CTRLPF, PF0, RESP0, GRP0, ENAM0 = 0x0A, 0x0D, 0x10, 0x1B, 0x1D
HMP0, HMM0, HMOVE = 0x20, 0x22, 0x2A
CXM0P = 0x30  # to read
INTIM = 0x0284

# Instructions, as far as they are needed here.
LDA, LDA_ABS, STA, STA_ABS, STA_X = 0xA5, 0xAD, 0x85, 0x8D, 0x95
ADC, SBC, INC = 0x65, 0xE5, 0xE6
LDA_IMM, LDX_IMM, LDY_IMM, ADC_IMM, SBC_IMM, CMP_IMM, CPX_IMM, EOR = (
    0xA9, 0xA2, 0xA0, 0x69, 0xE9, 0xC9, 0xE0, 0x49)  # fmt: skip
ASL, LSR, CLC, SEC, CLD, SED, INX, DEX, DEY, TXS, PHP, PLA, NOP = (
    0x0A, 0x4A, 0x18, 0x38, 0xD8, 0xF8, 0xE8, 0xCA, 0x88, 0x9A, 0x08, 0x68, 0xEA)  # fmt: skip
BNE, BCS, JMP, BIT, JAM = 0xD0, 0xB0, 0x4C, 0x24, 0x02

END_FRAME = bytes([LDA_IMM, 2, STA, VSYNC, STA, WSYNC, STA, WSYNC, LDA_IMM, 0, STA, VSYNC])


def image_of(code: bytes) -> bytes:
    """A ROM of 4 KiB with a program at its beginning, $F000."""
    image = bytearray(4096)
    image[: len(code)] = code
    image[0xFFC:0xFFE] = 0x00, 0xF0
    return bytes(image)


class Program:
    """A console that runs a 4 KiB program from $F000 on, as often as it is told a frame."""

    def __init__(self, code: bytes) -> None:
        # A joystick game whose rules look at nothing between 0x80 and 0xBF.
        settings = native_settings(GAMES["riverraid"], AtariSettings(), "disabled")
        self._player = native.Player(settings, image_of(code), 0)
        self._player.begin()

    def run_frame(self) -> None:
        self._player.act(0)

    @property
    def ram(self) -> NDArray[np.uint8]:
        ram = np.empty(128, np.uint8)
        self._player.read_ram(ram)
        return ram

    @property
    def screen(self) -> NDArray[np.uint8]:
        screen = np.empty((210, 160), np.uint8)
        self._player.read_screen(screen)
        return screen

    @property
    def registers(self) -> dict[str, int]:
        return dict(self._player.state())

    @property
    def positions(self) -> NDArray[np.int64]:
        """Of players, missiles and ball."""
        registers = self.registers
        return np.array([registers[f"position {name}"] for name in ("P0", "P1", "M0", "M1", "BL")])


def wait(cycles: int) -> bytes:
    """Instructions that take so many cycles, 0 or at least 2."""
    assert cycles != 1
    return bytes([BIT, 0x80] * (cycles % 2) + [NOP] * ((cycles - 3 * (cycles % 2)) // 2))


def repeat(loop: bytes) -> bytes:
    """A loop that ends where the zero flag is set."""
    return loop + bytes([BNE, 256 - len(loop) - 2])


# The 6507. ----------------------------------------------------------------------------------------


def decimal(adds: bool, a: int, operand: int, carry: int) -> tuple[int, int]:
    """ADC or SBC in decimal mode: the result, and the flags N, V, Z and C where P has them.

    A digit of 10 to 15 counts as such. A difference that is negative still after 100 was added,
    which takes such digits, is looked up before the table of results, where the table of the
    operands' values ends.
    """

    def value(byte: int) -> int:
        return byte // 16 * 10 + byte % 16

    def digits(number: int) -> int:
        return number // 10 % 10 * 16 + number % 10

    if adds:
        total = value(a) + value(operand) + carry
        result, carry_out = digits(total % 256 % 100), total > 99
    else:
        difference = value(a) - value(operand) - (1 - carry)
        difference += 100 * (difference < 0)
        result = digits(difference) if difference >= 0 else value(256 + difference)
        carry_out = a >= operand + (1 - carry)
    overflow = (a ^ result) & (result ^ operand) & 0x80
    return result, (result & 0x80) | overflow >> 1 | (result == 0) << 1 | carry_out


@pytest.mark.parametrize("adds", [True, False], ids=["ADC", "SBC"])
def test_decimal_mode_of_all_operands(adds: bool) -> None:
    # $FC is the accumulator, $FD the operand, $FE the carry; a frame does 32 of all 2^17 cases.
    batch = 32
    count = bytes([LDA, 0xFE, EOR, 1, STA, 0xFE, BNE, 6, INC, 0xFD, BNE, 2, INC, 0xFC])
    case = bytes([LDA, 0xFE, LSR, SED, LDA, 0xFC, ADC if adds else SBC, 0xFD])
    case += bytes([PHP, STA_X, 0x80, PLA, STA_X, 0x81, CLD, INX, INX])
    loop = case + count + bytes([CPX_IMM, 2 * batch])
    start = bytes([LDX_IMM, 0xFF, TXS, LDA_IMM, 0, STA, 0xFC, STA, 0xFD, STA, 0xFE])
    code = start + bytes([LDX_IMM, 0]) + repeat(loop)
    program = Program(code + END_FRAME + bytes([JMP, len(start), 0xF0]))

    expected = {}
    for number in range(1 << 17):
        a, operand, carry = number >> 9, number >> 1 & 255, number & 1
        expected[number] = decimal(adds, a, operand, carry)
    for _ in range((1 << 17) // batch):
        a, operand, carry = program.ram[0x7C:0x7F].tolist()
        program.run_frame()
        results = program.ram[: 2 * batch].reshape(batch, 2).tolist()
        for i, (result, flags) in enumerate(results):
            number = ((a << 9 | operand << 1 | carry) + i) % (1 << 17)
            assert (result, flags & 0xC3) == expected.pop(number), hex(number)
    assert not expected


def test_an_opcode_that_stops_the_processor_stops_it_for_good() -> None:
    frame = repeat(bytes([STA, WSYNC, INX])) + END_FRAME + bytes([INC, 0x80])
    start = bytes([LDA_IMM, 0x0E, STA, COLUBK, LDX_IMM, 0])
    program = Program(start + frame + frame + bytes([JAM]) + frame)
    ram = program.ram
    for _ in range(3):
        program.run_frame()

    assert program.registers["jammed"] == 1
    assert program.registers["partial"] == 1
    assert (program.ram == ram).all()
    # A frame that does not end shows the older picture, once in gray: half of the luminance.
    assert (program.screen == 7).all()


# The RIOT. ----------------------------------------------------------------------------------------


def intim(value: int, shift: int, set_at: int, reads: list[int]) -> Iterator[int]:
    """What reads of INTIM find that end at these cycles, after ``value`` was written at ``set_at``.

    The timer counts down once in 2^shift cycles and goes on from 0 to 255. From there it counts
    every cycle, until the first read after that, from which on it counts as before.
    """
    first_expired: int | None = None
    for cycle in reads:
        passed = cycle - 1 - set_at
        left = value - (passed >> shift) - 1
        since_expiry = (value << shift) - passed - 1
        if left >= 0:
            yield left
            continue
        if since_expiry <= -2 and first_expired is None:
            first_expired = cycle
        if first_expired is not None:
            yield (value - (passed >> shift) - (first_expired - set_at - (value << shift))) & 255
        else:
            yield since_expiry & 255


@pytest.mark.parametrize("pause", [0, 2, 17, 90])
@pytest.mark.parametrize("value", [0, 1, 2, 9, 255])
@pytest.mark.parametrize(("register", "shift"), [(0x94, 0), (0x95, 3), (0x96, 6), (0x97, 10)])
def test_the_timer_counts_and_wraps(register: int, shift: int, value: int, pause: int) -> None:
    count = 60
    read = bytes([LDA_ABS, INTIM & 255, INTIM >> 8, STA_X, 0x80]) + wait(pause)
    loop = read + bytes([INX, CPX_IMM, count])
    start = bytes([LDX_IMM, 0, LDA_IMM, value, STA_ABS, register, 0x02])
    program = Program(start + repeat(loop) + END_FRAME + bytes([JMP, 0, 0xF0]))
    program.run_frame()

    # After the write: a read takes 4 cycles, a store 4, INX 2, CPX 2, a branch that is taken 3.
    reads = [4 + number * (15 + pause) for number in range(count)]
    assert program.ram[:count].tolist() == list(intim(value, shift, 0, reads))


def test_the_timer_goes_on_over_frames() -> None:
    frames = 100
    start = bytes([LDX_IMM, 0, LDA_IMM, 10, STA, WSYNC, STA_ABS, 0x97, 0x02])
    frame = bytes([LDA_ABS, INTIM & 255, INTIM >> 8, STA_X, 0x80, INX]) + END_FRAME
    program = Program(start + frame * frames)  # what follows is a BRK
    for _ in range(frames - 60 - 4 - 4 - 1):  # without those of the reset
        program.run_frame()

    # The first read ends 8 cycles after the line began. A frame waits for two lines, of 76 cycles
    # each; then come 5 cycles to its end and 4 to the next read.
    reads = [8, *(9 + 152 * number for number in range(1, frames - 1))]
    assert program.ram[: frames - 1].tolist() == list(intim(10, 10, 4, reads))


# The TIA. -----------------------------------------------------------------------------------------


# What HMOVE in these cycles of a line can do at least, and how it is held back.
LATE_IN_BLANK = (-6, -5, -5, -4, -3, -2, -2, -1, 0, 1, 1, 2, 3, 4, 4, 5, 6)  # cycles 4 to 20
END_OF_LINE = (6, 5, 4, 4, 3, 2, 1, 1, 0, -1, -2, -2, -3, -4, -5, -5, -6, -7, -8, -8)  # 55 to 74


def motion(cycle: int, h: int) -> int:
    """Pixels that HMOVE in a cycle of the line moves an object to the right."""
    asked = -h if h < 8 else 16 - h
    if cycle <= 3 or cycle == 75:
        return asked
    if cycle <= 20:
        return max(asked, LATE_IN_BLANK[cycle - 4])
    return min(0, asked + END_OF_LINE[cycle - 55]) if cycle >= 55 else 0


@pytest.mark.parametrize("cycle", range(76))
def test_hmove_in_every_cycle_of_a_line(cycle: int) -> None:
    set_all = bytes([LDA, 0x80, *(byte for i in range(5) for byte in (STA, HMP0 + i))])
    hmove = bytes([STA, WSYNC]) + wait(cycle - 3 if cycle > 4 or cycle == 3 else cycle + 73)
    hmove += bytes([STA, HMOVE, CLC, LDA, 0x80, ADC_IMM, 0x10, STA, 0x80])
    program = Program(set_all + hmove + END_FRAME + bytes([JMP, 0, 0xF0]))
    for _ in range(16):
        h = int(program.ram[0]) >> 4
        before = program.positions
        program.run_frame()

        moved = (program.positions - before + 80) % 160 - 80
        assert moved.tolist() == [motion(cycle, h)] * 5, h


# By the low three bits of NUSIZ; a player that is not 8 pixels wide begins a pixel late.
COPIES = ((0,), (0, 16), (0, 32), (0, 16, 32), (0, 64), (0,), (0, 32, 64), (0,))
WIDTH = (8, 8, 8, 8, 8, 16, 8, 32)


def player(mode: int, position: int, *, first: bool) -> NDArray[np.bool_]:
    """The pixels of a line that a player covers, all bits set, with or without its first copy."""
    pixels = np.zeros(160, np.bool_)
    late = WIDTH[mode] > 8
    for offset in COPIES[mode][0 if first else 1 :]:
        pixels[(position + offset + late + np.arange(WIDTH[mode])) % 160] = True
    return pixels


def reset_line(mode: int, old: int, clock: int) -> tuple[NDArray[np.bool_], int]:
    """A line in which RESP0 is written at a color clock, and the position after it.

    The copies of the new place begin with the second one, unless it lies just before a copy of the
    old. Where it lies in such a copy, that one is shown for some pixels more.
    """
    new = 3 if clock < 68 else (clock - 68 + 5) % 160
    distance = (new - old) % 160
    in_delay = any(offset <= distance < offset + 4 for offset in COPIES[mode])
    in_copy = any(offset + 4 <= distance < offset + 4 + WIDTH[mode] for offset in COPIES[mode])
    change = max(0, clock - 68 + (11 if in_copy and not in_delay else 0))
    line = player(mode, old, first=True)
    line[change:] = player(mode, new, first=in_delay)[change:]
    return line, new


@pytest.mark.parametrize("cycle", range(19, 73, 3))
def test_a_player_is_reset_in_every_place_of_every_old_one(cycle: int) -> None:
    # Six lines for each mode and each of 160 old positions: count down to the place, compute the
    # rest, move by it, show the player, reset it in the given cycle, show it again.
    batch = 32
    place = bytes([STA, WSYNC]) + wait(11)
    place += bytes([LDA, 0x81, SEC, SBC_IMM, 15, BCS, 256 - 4, STA, RESP0])
    move = bytes([STA, WSYNC, EOR, 7, ASL, ASL, ASL, ASL, STA, HMP0, STA, WSYNC, STA, HMOVE])
    show = bytes([STA, WSYNC, STA, WSYNC]) + wait(cycle - 3) + bytes([STA, RESP0, STA, WSYNC])
    case = repeat(place + move + show + bytes([INC, 0x81, DEX]))
    init = bytes([LDA_IMM, 0, STA, 0x80, STA, 0x81, LDA_IMM, 255, STA, COLUP0])
    above = bytes([LDA, 0x80, STA, NUSIZ0, LDX_IMM, 40]) + repeat(bytes([STA, WSYNC, DEX]))
    above += bytes([LDA_IMM, 255, STA, GRP0, LDX_IMM, batch])
    below = bytes([STA, WSYNC, LDA_IMM, 0, STA, GRP0, LDA, 0x81, CMP_IMM, 160, BNE, 6])
    below += bytes([LDA_IMM, 0, STA, 0x81, INC, 0x80]) + END_FRAME
    program = Program(init + above + case + below + bytes([JMP, len(init), 0xF0]))
    players = np.stack([[player(mode, x, first=True) for x in range(160)] for mode in range(8)])
    seen = set()
    for _ in range(8 * 160 // batch):
        mode = int(program.ram[0]) & 7
        program.run_frame()
        rows = program.screen != 0
        begin = np.flatnonzero(rows.any(axis=1))[0] + 1
        for _, _, _, shown, reset, after in rows[begin : begin + 6 * batch].reshape(batch, 6, 160):
            (old,) = np.flatnonzero((players[mode] == shown).all(axis=1))
            line, new = reset_line(mode, int(old), 3 * cycle)
            assert (reset == line).all(), (mode, old)
            assert (after == players[mode, new]).all(), (mode, old)
            seen.add((mode, int(old)))
    assert len(seen) == 8 * 160


@pytest.mark.parametrize("lines", [1, 2, 10])
@pytest.mark.parametrize("first", [20, 48, 49, 74])
@pytest.mark.parametrize("second", [10, 48, 49, 75])
def test_reflection_changes_on_a_line_or_from_the_next_on(
    first: int, second: int, lines: int
) -> None:
    """CTRLPF is written in a cycle of one line, and back some lines later, with nothing between."""
    show = bytes([LDA_IMM, 14, STA, COLUPF, LDA_IMM, 0x10, STA, PF0, LDX_IMM, 60])
    show += repeat(bytes([STA, WSYNC, DEX]))
    on = wait(first - 9) + bytes([LDA_IMM, 1, STA, CTRLPF])  # the loop took 4 cycles of the line
    pause = 76 * lines + second - first - 5
    turns = pause // 5 - 2
    if turns > 0:  # of 5 cycles, and one
        pause -= 5 * turns + 1
    spin = bytes([LDX_IMM, turns]) + repeat(bytes([DEX])) if turns > 0 else b""
    off = spin + wait(pause) + bytes([LDA_IMM, 0, STA, CTRLPF])
    below = bytes([LDX_IMM, 60]) + repeat(bytes([STA, WSYNC, DEX]))
    program = Program(show + on + off + below + END_FRAME + bytes([JMP, 0, 0xF0]))

    program.run_frame()
    program.run_frame()

    mirrored = np.flatnonzero(program.screen[:, 159] != 0)
    repeated = np.flatnonzero(program.screen[:, 80] != 0)
    assert len(mirrored) == lines - (first >= 49) + (second >= 49)
    assert not np.intersect1d(mirrored, repeated).size
    assert (np.diff(mirrored) == 1).all()


# Stars are missile 0 while it moves on: HMM0 changes from 7 to 6 at 21 cycles after HMOVE.
SHOW_MISSILE = bytes([LDA_IMM, 14, STA, COLUP0, LDA_IMM, 2, STA, ENAM0, LDX_IMM, 60])
SHOW_MISSILE += bytes([LDA_IMM, 0x70, STA, HMM0]) + repeat(bytes([STA, WSYNC, DEX]))


@pytest.mark.parametrize("cycle", [5, 60])
def test_a_register_that_is_written_again_moves_the_star_field_as_another_value_does(
    cycle: int,
) -> None:
    """NUSIZ0 in every line: the same value, or one that differs in a bit without effect.

    Either makes missile 0 look as usual, also in lines where the star field widens or hides it.
    """
    start = SHOW_MISSILE + bytes([STA, WSYNC, STA, HMOVE, LDA_IMM, 0x60])
    start += wait(16) + bytes([STA, HMM0])
    end = bytes([LDX_IMM, 60]) + repeat(bytes([STA, WSYNC, DEX])) + END_FRAME
    screens = []
    for mask in (0, 0x40):
        write = bytes([STA, WSYNC]) + wait(cycle) + bytes([LDA, 0x80, EOR, mask, STA, 0x80])
        lines = bytes([LDX_IMM, 30]) + repeat(write + bytes([STA, NUSIZ0, DEX]))
        program = Program(start + lines + end + bytes([JMP, 0, 0xF0]))
        program.run_frame()
        program.run_frame()
        screens.append(program.screen)

    assert np.array_equal(screens[0], screens[1])
    assert len(np.unique(np.argmax(screens[0] != 0, axis=1))) > 20, "the stars move"


def test_stars_begin_on_the_line_where_they_are_switched_on() -> None:
    """HMOVE late on a line, HMM0 on the next: with or without a look at the picture between."""
    start = SHOW_MISSILE + wait(60) + bytes([STA, HMOVE, LDA_IMM, 0x60]) + wait(13)
    end = bytes([STA, HMM0, LDX_IMM, 60]) + repeat(bytes([STA, WSYNC, DEX])) + END_FRAME
    screens = []
    for look in (bytes([BIT, CXM0P]), bytes([BIT, 0x80])):
        program = Program(start + look + end + bytes([JMP, 0, 0xF0]))
        program.run_frame()
        program.run_frame()
        screens.append(program.screen)

    assert np.array_equal(screens[0], screens[1])
    assert len(np.unique(np.argmax(screens[0] != 0, axis=1))) > 20, "the stars move"


# Frames that a step observes. ---------------------------------------------------------------------


@pytest.mark.parametrize("frames", range(8, 40, 4))
def test_a_frame_that_took_two_calls_is_shown_whole(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seventh picture is bright, and takes more instructions than one call runs.

    A step whose last frame is the last of an episode shows the frame before, and once more what the
    step before showed, which may be such a picture.
    """
    spin = bytes([LDX_IMM, 0]) + repeat(bytes([DEX]))
    slow = bytes([LDA_IMM, 0xF9, STA, 0x80, LDA_IMM, 0x0E, STA, COLUBK, LDX_IMM, 100])
    slow += repeat(bytes([STA, WSYNC, DEX]))
    slow += bytes([LDY_IMM, 50]) + repeat(spin + bytes([DEY]))
    slow += bytes([LDA_IMM, 2, STA, COLUBK])
    count = bytes([INC, 0x80, BNE, len(slow)])
    lines = bytes([LDX_IMM, 0]) + repeat(bytes([STA, WSYNC, INX]))
    start = bytes([LDA_IMM, 0xF9, STA, 0x80, LDA_IMM, 2, STA, COLUBK])
    code = start + count + slow + lines + END_FRAME + bytes([JMP, len(start), 0xF0])
    monkeypatch.setattr(batch, "load_rom", lambda *_: image_of(code))
    settings = AtariSettings(screen_size=(210, 160), stack_size=1, noop_max=0)
    single = Emulator("riverraid", 1, replace(settings, frame_skip=1, max_pool=False))
    fours = Emulator("riverraid", 1, replace(settings, max_frames_per_episode=frames))

    single.reset(seed=0)
    fours.reset(seed=0)
    shown = [single.step([0]).obs[0, 0].copy() for _ in range(frames)]
    steps = [fours.step([0]) for _ in range(frames // 4)]

    assert steps[-1].truncated.all()
    expected = np.maximum.reduce([shown[-6], shown[-5], shown[-2]])
    assert np.array_equal(steps[-1].final_obs[0, 0], expected)
    assert len({int(picture.max()) for picture in shown}) == 2
