"""The house: no loose files, imports that run downwards, no circles, and a page that says so."""

import subprocess
from graphlib import TopologicalSorter

import draw_rooms
import pytest

IMPORTS = list(draw_rooms.imports())
OF_MODEL = {"pdfx.model.pictures", "pdfx.model.texts"}
"""They travel in exports with the rest of ``pdfx.model``, but need neither torch nor transformers."""


def test_nothing_lies_loose_at_the_root():
    loose = [path.name for path in (draw_rooms.ROOT / "pdfx").glob("*.py")]
    assert sorted(loose) == ["__init__.py", "__main__.py", "errors.py"]


def test_every_module_is_in_a_room_and_every_room_has_modules():
    assert {draw_rooms.room_of(module) for module in draw_rooms.modules() if module != "data_tools"} == set(
        draw_rooms.ROOMS
    )


def test_no_room_imports_upwards():
    floors = {room: number for number, room in enumerate(draw_rooms.ROOMS)}
    rooms = ((module, other, draw_rooms.room_of(module), draw_rooms.room_of(other)) for module, other in IMPORTS)
    assert [f"{module} imports {other}" for module, other, room, below in rooms if floors[below] > floors[room]] == []


def test_no_modules_import_one_another_in_a_circle():
    graph = {}
    for module, other in IMPORTS:
        graph.setdefault(module, set()).add(other)
    TopologicalSorter(graph).prepare()


def test_only_the_command_line_imports_the_data_tools():
    users = {
        draw_rooms.room_of(module)
        for module, other in IMPORTS
        if other.startswith("data_tools") and module.startswith("pdfx")
    }
    assert users == {"pdfx.cli"}


def test_the_data_tools_need_little_of_pdfx():
    used = {other for module, other in IMPORTS if module.startswith("data_tools") and other.startswith("pdfx")}
    rooms = {draw_rooms.room_of(other) for other in used - OF_MODEL}
    assert rooms <= {"pdfx.host", "pdfx.config", "pdfx.data", "pdfx.data.storage"}


def test_the_model_stands_alone():
    assert {
        other for module, other in IMPORTS if module.startswith("pdfx.model") and not other.startswith("pdfx.model")
    } == set()


def test_the_architecture_shows_the_rooms_as_they_are():
    assert draw_rooms.page() == draw_rooms.PAGE.read_text(encoding="utf-8"), "Run python docs/draw_rooms.py."


@pytest.mark.parametrize("room", draw_rooms.ROOMS)
def test_a_room_is_described_in_one_line(room):
    assert 20 < len(draw_rooms.description(room)) < 200


def test_files_are_tracked_where_they_are_imported_from():
    tracked = subprocess.run(
        ["git", "ls-files", "pdfx", "data_tools"], cwd=draw_rooms.ROOT, capture_output=True, text=True
    ).stdout.split()
    paths = {
        path.relative_to(draw_rooms.ROOT).as_posix()
        for name, path in draw_rooms.modules().items()
        if not name.startswith("launch")
    }
    assert not tracked or paths <= set(tracked)
