"""What the decoders of images, sound and video share: their complaint, how containers are opened, the limits."""

IMAGE = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
AUDIO = (".wav", ".flac", ".ogg", ".mp3")
VIDEO = (".mp4", ".avi", ".mkv", ".webm", ".mov")
ARRAY = (".npy",)

# A few bytes can ask for any memory and time. More than this is refused; the option limit multiplies all of these.
IMAGE_PIXELS = 10**8
FRAME_PIXELS = 2**25  # of a video's frame: 8K is just below
CLIP_PIXELS = 2 * 10**8  # of the frames that are taken of a clip, together: 24 frames of 4K, 6 of 8K
VIDEO_FRAMES = 10**6
SECONDS = 3600  # of sound
RATE = 768_000  # Hz
SAMPLES = SECONDS * 48_000

# Containers are told by their contents. Those that name other files or addresses, such as playlists, are not opened.
CONTAINERS = (
    "wav,w64,mp3,flac,ogg,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,asf"
)


class MediaError(Exception):
    """A file that cannot be used, in one line: what is wrong with it; perhaps the mend, where it is a special one."""

    def __init__(self, what, mend=None):
        super().__init__(what)
        self.mend = mend


class TooLarge(MediaError):
    """A file beyond the limits."""

    def __init__(self, what):
        super().__init__(what, "replace the file, empty the cell, or raise the limits with --option limit=4")


def reason(error):
    """The message of a decoder's exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def open_container(path, formats=CONTAINERS):
    """av.open of a file of one of `formats`, which reads that file alone."""
    import av

    return av.open(path, container_options={"format_whitelist": formats, "protocol_whitelist": "file"})
