// The timeline seeks the film, and its head follows it. `element` is the component's own.
const film = () => document.querySelector("#result video");
const timeline = () => element.querySelector(".timeline");

function seek(seconds) {
  const video = film();
  if (!video) return;
  const end = Number.isFinite(video.duration) ? video.duration : seconds;
  video.currentTime = Math.min(Math.max(seconds, 0), end);
  show();
}

function show() {
  const video = film(), line = timeline();
  if (!video || !line) return;
  const part = Math.min(1, video.currentTime / Number(line.dataset.seconds));
  line.querySelector(".head").style.left = `${100 * part}%`;
  line.querySelector(".stage").setAttribute("aria-valuenow", video.currentTime.toFixed(1));
  const second = String(Math.floor(video.currentTime));
  for (const button of line.querySelectorAll("button[data-second]"))
    button.closest("tr").classList.toggle("now", button.dataset.second === second);
}

function place(event) {
  const box = event.target.closest(".stage").getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * Number(timeline().dataset.seconds));
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-second]");
  if (button) seek(Number(button.dataset.second));
});
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".stage") || event.button !== 0) return;
  event.preventDefault();
  event.target.closest(".stage").focus();
  place(event);
});
element.addEventListener("pointermove", (event) => {
  if (event.buttons === 1 && event.target.closest(".stage")) place(event);
});
element.addEventListener("keydown", (event) => {
  const video = film(), steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -5, PageUp: 5 };
  if (!video || !event.target.closest(".stage")) return;
  if (event.key in steps) seek(video.currentTime + steps[event.key]);
  else if (event.key === "Home") seek(0);
  else if (event.key === " ") video.paused ? video.play() : video.pause();
  else return;
  event.preventDefault();
});
// Events of a film do not bubble; they are caught on their way down.
for (const name of ["timeupdate", "seeked", "play", "loadedmetadata"])
  document.addEventListener(name, show, true);
