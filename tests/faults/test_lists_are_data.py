"""Hostile list files: refused with file and line, and nothing that they name is fetched."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.conftest import grey, moving_bars, write_images, write_lines
from faults.report import report
from lit_distill.data import VideoDataModule, VideoError, read_list, write_video


class Counter(socketserver.ThreadingTCPServer):
    """A server that counts who connects."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.hits = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.hits += 1
        self.shutdown_request(request)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Counter]:
    with Counter() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    write_video(folder / "a/0.mp4", moving_bars(6))
    (tmp_path / "outside").mkdir()
    write_video(tmp_path / "outside/0.mp4", moving_bars(6))
    return folder


def module(root: Path, **arguments: object) -> VideoDataModule:
    given = {"root": root, "train_list": "list.txt", "val_list": "list.txt", "num_classes": 2, "num_frames": 2,
             "size": 28, "scale": 32, "batch_size": 1, "num_workers": 0}  # fmt: skip
    return VideoDataModule(**{**given, **arguments})  # type: ignore[arg-type]


def named_lines(root: Path, port: int) -> dict[str, str]:
    """Lines that name what must not be opened, with a part of the refusal."""
    url, outside = f"http://127.0.0.1:{port}", root.parent / "outside/0.mp4"
    return {
        f"{url}/a.mp4": "URL or protocol",
        f"HTTPS://127.0.0.1:{port}/a.mp4": "URL or protocol",
        f"rtsp://127.0.0.1:{port}/a": "URL or protocol",
        f"tcp://127.0.0.1:{port}": "URL or protocol",
        f"ftp://127.0.0.1:{port}/a.mp4": "URL or protocol",
        f"concat:a/0.mp4|{outside}": "URL or protocol",
        f"concat:{url}/a.mp4|{url}/b.mp4": "URL or protocol",
        f"concatf:{url}/a": "URL or protocol",
        f"subfile,,start,0,end,0,,:{outside}": "URL or protocol",
        f"crypto:{url}/a.mp4": "URL or protocol",
        f"async:{url}/a.mp4": "URL or protocol",
        f"cache:{url}/a.mp4": "URL or protocol",
        f"hls+{url}/a.m3u8": "URL or protocol",
        f"file:{outside}": "URL or protocol",
        "data:video/mp4;base64,AAAA": "URL or protocol",
        "pipe:0": "URL or protocol",
        "a/list.m3u8": "playlist",
        "a/list.M3U8": "playlist",
        "a/list.mpd": "playlist",
        "a/list.ffconcat": "playlist",
        "a/list.sdp": "playlist",
        "../outside/0.mp4": "not inside the root",
        "a/../../outside/0.mp4": "not inside the root",
        "./a/./../.././outside/0.mp4": "not inside the root",
        str(outside): "not inside the root",
        f"{root}/../outside/0.mp4": "not inside the root",
        f"{root}-not/0.mp4": "not inside the root",
        "/etc/passwd": "not inside the root",
        "/dev/zero": "not inside the root",
        "a/0.mp4\0/b": "URL or protocol",
    }


def test_what_a_list_must_not_name_is_refused(root: Path, server: Counter) -> None:
    lines = named_lines(root, server.server_address[1])
    for line, message in lines.items():
        write_lines(root / "list.txt", ["a/0.mp4 1", f"{line} 0"])
        with pytest.raises(ValueError, match=message) as caught:
            module(root).setup("fit")
        assert str(caught.value).startswith(f"{root}/list.txt:2: ")
        assert repr(line) in str(caught.value)
    assert server.hits == 0
    report("what a list file must not name is refused; loopback hits 0", tried=len(lines), survived=len(lines))


@pytest.mark.parametrize("link", ["file", "folder", "chain", "dangling"])
def test_links_out_of_the_root_are_refused(root: Path, link: str) -> None:
    outside = root.parent / "outside"
    if link == "file":
        (root / "a/1.mp4").symlink_to(outside / "0.mp4")
    elif link == "folder":
        (root / "b").symlink_to(outside)
    elif link == "chain":
        (root / "c.mp4").symlink_to(outside / "0.mp4")
        (root / "a/1.mp4").symlink_to("../c.mp4")
    else:
        (root / "a/1.mp4").symlink_to(outside / "gone.mp4")
    path = "b/0.mp4" if link == "folder" else "a/1.mp4"
    write_lines(root / "list.txt", ["a/0.mp4 1", "", f"{path} 0"])
    with pytest.raises(ValueError, match=rf"list\.txt:3: .*{path} is a link to {outside}/.*, outside the root") as told:
        module(root).setup("fit")
    assert f"data.roots=[{outside}]" in str(told.value)
    if link != "dangling":
        data = module(root, roots=[outside])
        data.setup("fit")
        assert data.datasets["train"][1][1] == 0
    report("links out of the root are refused", tried=1, survived=1)


def test_links_inside_the_root_and_a_linked_root_are_followed(root: Path) -> None:
    (root / "b").symlink_to("a")
    (root / "a/1.mp4").symlink_to(root / "a/0.mp4")
    linked = root.parent / "linked"
    linked.symlink_to(root)
    write_lines(root / "list.txt", ["b/0.mp4 0", "a/1.mp4 1", f"{linked}/a/0.mp4 1"])
    data = module(linked)
    data.setup("fit")
    assert [data.datasets["train"][i][1] for i in range(3)] == [0, 1, 1]


def test_an_image_that_is_a_link_out_of_the_root(root: Path) -> None:
    write_images(root / "f", grey(2, 40))
    write_images(root.parent / "outside", grey(1, 9))
    (root / "f/img_00002.jpg").unlink()
    (root / "f/img_00002.jpg").symlink_to(root.parent / "outside/img_00001.jpg")
    write_lines(root / "list.txt", ["f 2 0"])
    data = module(root, format="frames")
    data.setup("fit")
    with pytest.raises(VideoError, match=r"img_00002\.jpg: a link that leads out of data\.root"):
        data.datasets["train"][0]
    admitted = module(root, format="frames", roots=[root.parent / "outside"])
    admitted.setup("fit")
    assert admitted.datasets["train"][0][1] == 0


def test_playlists_by_another_name_fetch_nothing(root: Path, server: Counter) -> None:
    """What a file is, its content says: playlists, concatenations and image lists are no videos whatever their name."""
    url = f"http://127.0.0.1:{server.server_address[1]}"
    contents = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
        "hls_local": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{root}/../outside/0.mp4\n#EXT-X-ENDLIST\n",
        "dash": f'<?xml version="1.0"?><MPD><Period><BaseURL>{url}/a.mp4</BaseURL></Period></MPD>',
        "concat": f"ffconcat version 1.0\nfile '{url}/a.mp4'\n",
        "concat_local": f"ffconcat version 1.0\nfile '{root}/a/0.mp4'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, content in contents.items():
        for ending in ("mp4", "mkv", "ts", "avi"):
            (root / f"a/{name}.{ending}").write_text(content)
            write_lines(root / "list.txt", [f"a/{name}.{ending} 0"])
            data = module(root)
            data.setup("fit")
            with pytest.raises(VideoError, match=rf"{name}\.{ending}: "):
                data.datasets["train"][0]
    assert server.hits == 0
    tried = 4 * len(contents)
    report("playlists by a video's name are refused; loopback hits 0", tried=tried, survived=tried)


def test_the_list_alone_refuses(root: Path) -> None:
    """Without a data module too; ``roots`` admits absolute paths."""
    file = write_lines(root / "list.txt", [f"{root.parent}/outside/0.mp4 0"])
    with pytest.raises(ValueError, match="not inside the root"):
        read_list(file, root=root, num_classes=1)
    (sample,) = read_list(file, root=root, num_classes=1, roots=[root.parent / "outside"])
    assert sample.path == f"{root.parent}/outside/0.mp4"
