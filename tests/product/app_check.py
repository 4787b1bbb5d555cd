"""Use the page of ``glipv2 app`` in a real browser, Debian's Chromium, driven by Selenium.

    python tests/product/app_check.py [--screenshot FILE]

Uploads a photo, types class names, and checks what the page shows; submits a question; uploads a
file that is no image, whose message must be visible.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import skimage
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

PHOTOS = Path(skimage.__file__).parent / "data"
TIMEOUT = 300.0

T = TypeVar("T")


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def find(self, selector: str) -> WebElement:
        return wait_for(
            lambda: self.driver.find_element(By.CSS_SELECTOR, selector), f"element {selector}"
        )

    def upload(self, path: Path) -> None:
        """Choose an image; one that is there is removed first."""
        for button in self.driver.find_elements(By.CSS_SELECTOR, "#image button[aria-label=Clear]"):
            button.click()
        self.find("#image input[type=file]").send_keys(str(path))

    def wait_for_upload(self) -> None:
        wait_for(
            lambda: self.driver.find_element(By.CSS_SELECTOR, "#image img").get_attribute("src"),
            "the uploaded image",
        )

    def choose_task(self, name: str) -> None:
        for label in self.driver.find_elements(By.CSS_SELECTOR, "#task label"):
            if label.text.strip() == name:
                label.click()
                return
        raise AssertionError(f"no task {name!r}")

    def type_prompt(self, text: str) -> None:
        field = self.find("#prompt textarea, #prompt input")
        field.clear()
        field.send_keys(text)

    def run(self) -> None:
        self.find("#run").click()

    def drawn_image(self) -> str | None:
        return self.driver.find_element(By.CSS_SELECTOR, "#result img").get_attribute("src")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="of the page, as PNG")
    args = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "glipv2_cli", "app", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}"), "the page", process)
            driver = start_browser(Path(folder))
            try:
                driver.get(f"http://127.0.0.1:{port}")
                check(Page(driver, Path(folder)), args.screenshot)
            finally:
                driver.quit()
        finally:
            process.terminate()
            process.wait()
    return 0


def check(page: Page, screenshot: Path | None) -> None:
    page.upload(PHOTOS / "coffee.png")
    page.wait_for_upload()
    page.type_prompt("cup, spoon, dog")
    page.run()
    first = wait_for(page.drawn_image, "the drawn image")
    found = page.find("#phrases").text
    assert "cup" in found and "dog" not in found, found
    assert "cup" in page.find("#table").text
    link = page.find("#download a").get_attribute("href")
    assert link is not None
    with urllib.request.urlopen(link) as response:
        content = json.load(response)
    assert content["detections"][0]["category_name"] == "cup", content
    assert (content["width"], content["height"]) == (600, 400)
    print("class names: the cup is drawn, listed and in the JSON file")
    if screenshot is not None:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.driver.save_screenshot(str(screenshot))
        print(f"wrote {screenshot}")

    page.choose_task("Question")
    page.type_prompt("is there a cup in the picture?")
    page.run()
    answer = wait_for(
        lambda: page.find("#text textarea, #text input").get_attribute("value"), "the answer"
    )
    assert answer.startswith("yes"), answer
    print(f"question: {answer}")

    with tempfile.NamedTemporaryFile("w", suffix=".png") as file:
        file.write("<html>no image</html>")
        file.flush()
        page.upload(Path(file.name))
        time.sleep(2)
        page.run()
        message = wait_for(
            lambda: page.driver.find_element(By.CSS_SELECTOR, ".toast-body").text, "the message"
        )
    assert "is not a readable image (a web page)" in message, message
    print(f"bad file: {' '.join(message.split())}")
    assert first


def start_browser(downloads: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,1100"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_for(get: Callable[[], T], what: str, process: subprocess.Popen[bytes] | None = None) -> T:
    """The value of ``get`` as soon as it is true and raises no error of the browser."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the command ended with {process.returncode}")
        try:
            if value := get():
                return value
        except WebDriverException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"no {what} after {TIMEOUT:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
