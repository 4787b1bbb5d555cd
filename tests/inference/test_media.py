from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from glipv2_d2.inference.media import expand_sources, frame_rate, is_video, read_frames
from glipv2_d2.inference.video_writing import VideoWriter

FRAME = (32, 48)  # (height, width)


@pytest.fixture
def video(tmp_path: Path) -> str:
    """Five frames whose red grows by 40, at 10 frames per second."""
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, FRAME[::-1])
    for number in range(5):
        image = np.zeros((*FRAME, 3), dtype=np.uint8)
        image[:, :, 2] = 40 * number
        writer.write(image)
    writer.release()
    return path


def test_frames_are_rgb_and_numbered(video: str) -> None:
    frames = list(read_frames(video))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    reds = [int(frame.image[:, :, 0].mean()) for frame in frames]
    np.testing.assert_allclose(reds, [0, 40, 80, 120, 160], atol=6)
    assert frames[4].image[:, :, 2].mean() < 10
    assert frame_rate(video) == 10


def test_frames_from_a_number_continue_a_video(video: str) -> None:
    assert [frame.number for frame in read_frames(video, 3)] == [3, 4]


def test_image_is_one_frame_without_number(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    (frame,) = read_frames(str(tmp_path / "a.png"))
    assert frame.number is None and frame.image.shape == (4, 6, 3)


def test_damaged_and_missing_videos_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"damaged\.mp4' is not a video"):
        list(read_frames(str(damaged)))
    with pytest.raises(FileNotFoundError, match=r"missing\.mp4' does not exist"):
        list(read_frames(str(tmp_path / "missing.mp4")))


def test_missing_camera_is_one_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="camera 'webcam:99' cannot be opened"):
        list(read_frames("webcam:99"))
    assert capfd.readouterr() == ("", "")


def test_sources_are_files_folders_patterns_addresses_and_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.MP4", "notes.txt", "sub/c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert expand_sources(["."]) == ["a.jpg", "b.MP4"]
    assert expand_sources(["."], recursive=True) == ["a.jpg", "b.MP4", "sub/c.png"]
    assert expand_sources(["**/*.png", "a.jpg", "a.jpg"]) == ["sub/c.png", "a.jpg"]
    others = ["https://example.org/x.jpg?size=3", "webcam", "webcam:1", "missing.jpg"]
    assert expand_sources(others) == others
    assert [is_video(source) for source in others] == [False, True, True, False]


def test_folder_without_images_suggests_its_subfolders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image or video .* --recursive"):
        expand_sources([str(tmp_path)])


def test_a_folder_without_images_among_other_inputs_is_skipped_later(tmp_path: Path) -> None:
    """As in photos/*, which the shell expands to files and subfolders."""
    (tmp_path / "empty.png").mkdir()
    (tmp_path / "a.jpg").touch()
    inputs = [str(tmp_path / name) for name in ("a.jpg", "empty.png", "none*.jpg")]
    assert expand_sources(inputs) == inputs
    for source in inputs[1:]:
        with pytest.raises((FileNotFoundError, ValueError)):
            next(read_frames(source))


def test_written_video_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    with VideoWriter(path, 10) as writer:
        for _ in range(3):
            writer.write(np.full((*FRAME, 3), 200, dtype=np.uint8))
        assert not path.exists()
    assert len(list(read_frames(str(path)))) == 3
    with pytest.raises(IndexError), VideoWriter(path, 10) as writer:
        writer.write(np.zeros((0, 0, 0), dtype=np.uint8)[[1]])
    assert len(list(read_frames(str(path)))) == 3
    assert [file.name for file in path.parent.iterdir()] == ["out.mp4"]
