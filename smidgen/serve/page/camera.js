// Pictures of the user's own: pixels of a file, and frames of the camera. They never leave the page.

const LARGEST_SIDE = 4096; // pixels; some phones cannot draw larger ones

/** Pixels of a file with a picture, upright, its colours as stored. */
export async function pixelsFrom(file) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  try {
    return drawn(image, image.width, image.height);
  } finally {
    image.close();
  }
}

function drawn(source, width, height) {
  const share = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * share)), Math.max(1, Math.round(height * share))];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The camera: hands one frame after another to `frame`, the next when that is done. */
export class Camera {
  constructor(video, { frame, failed, changed }) {
    Object.assign(this, { video, frame, failed, changed, stream: null, wanted: false });
    document.addEventListener("visibilitychange", () => document.hidden && this.stop());
  }

  toggle() {
    return this.wanted ? this.stop() : this.start();
  }

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.failed("The camera needs a secure page: https, or this very machine. Choosing a picture works anyway.");
      return;
    }
    this.wanted = true;
    this.changed(true);
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
      if (!this.wanted) return stopped(stream);
      this.stream = stream;
      this.video.srcObject = stream;
      await this.video.play();
      await this.look();
    } catch (error) {
      this.stop();
      this.failed(REASONS[error.name] ?? `The camera does not work here: ${error.message}`);
    }
  }

  async look() {
    while (this.stream) {
      const { videoWidth, videoHeight } = this.video;
      if (videoWidth) await this.frame(drawn(this.video, videoWidth, videoHeight));
      await new Promise((resume) => requestAnimationFrame(resume));
    }
  }

  stop() {
    if (!this.wanted) return;
    this.wanted = false;
    if (this.stream) stopped(this.stream);
    this.stream = null;
    this.video.srcObject = null;
    this.changed(false);
  }
}

function stopped(stream) {
  for (const track of stream.getTracks()) track.stop();
}

const REASONS = {
  NotAllowedError: "The camera was not allowed. Choosing a picture works anyway.",
  NotFoundError: "There is no camera here. Choosing a picture works anyway.",
  NotReadableError: "The camera is in use by another program. Choosing a picture works anyway.",
};
