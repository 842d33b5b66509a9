"""Reason codes: why a slide, a member or a task was not completed.

Logic and tests read codes; the sentence beside a code is for people and may change. Standard library only.
"""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """One reason, as it is written in report.jsonl, run.json, shards.csv and a worker's response."""

    # The slide's process.
    TIMEOUT = "timeout"  # it passed the time limit of a slide
    STALLED = "stalled"  # no batch came for too long
    OUT_OF_MEMORY = "out_of_memory"  # it passed the memory limit of a slide
    CRASHED = "crashed"  # it died of a signal, or ended without a result
    FAILED = "failed"  # an error that has no code of its own
    LEFT_BEHIND = "left_behind"  # it did not end when it was killed: a file system does not answer it
    # The slide's file.
    DAMAGED = "damaged"  # missing, damaged, or not an image
    UNSUPPORTED = "unsupported"  # sound, but no decoder here reads it, it is too large, or no socket carries its kind
    NO_TISSUE = "no_tissue"  # sound, but nothing differs from the background
    BAD_FEATURES = "bad_features"  # an encoder gave NaN, infinity or numbers that float16 cannot hold
    NO_RESOLUTION = "no_resolution"  # the recipe asks for micrometres, and the file does not say how large a pixel is
    UNFIT_RESOLUTION = "unfit_resolution"  # its pixels are far too small or too large for the recipe's micrometres
    STORE = "store"  # it could not be read from an object store
    SPARSE = "sparse"  # tiles or strips are absent from the file: they show the background
    TABLE_COMPLETED = "table_completed"  # sizes of tiles or strips were missing or wrong, and follow from their places
    DECODERS_DISAGREE = "decoders_disagree"  # two decoders read other pixels; one was chosen by a rule
    # The run.
    DEADLINE = "deadline"  # the deadline passed before its turn
    NO_MEMBER = "no_member"  # no member could be loaded
    NO_TILES = "no_tiles"  # no tile was cut
    LOST = "lost"  # the worker processes that had it died
    NOT_STARTED = "not_started"  # a worker could not start it
    OUTPUT_FULL = "output_full"  # the output has reached its size limit
    NOT_WRITTEN = "not_written"  # the file system refused a write
    MISSING = "missing"  # a member's folder, or what a run drew of a slide, is not there
    BAD_WEIGHTS = "bad_weights"  # a member's weights or calibration: damaged, not finite, or not those of its recipe
    # The kernel.
    NO_DATA = "no_data"  # no competition data is attached to the kernel
    STOPPED = "stopped"  # SIGTERM came
    INVALID = "invalid"  # the submission was not valid, so the fallback replaced it
    NO_SOCKET = "no_socket"  # a job has image sockets, but no image of one whose images are slides
    # The server of a competition with a gateway.
    BAD_ROW = "bad_row"  # a row of a batch has no image id that can be used
    AMBIGUOUS = "ambiguous"  # several files may be the slide of a row, and `serving.path` does not say which
    BAD_REQUEST = "bad_request"  # a line that `clotkit serve` got is no request
    NOT_READY = "not_ready"  # the members were not loaded by the deadline of a batch
    # The application.
    ABOVE_LIMIT = "above_limit"  # an upload is larger than the application accepts
    # Scored from less than everything.
    FEWER_TILES = "fewer_tiles"  # time was short: fewer tiles
    ONE_MEMBER = "one_member"  # time was very short: fewer tiles, one member
    COARSER = "coarser"  # read again at a larger downsample after a first try was lost
    MEMBER_FAILED = "member_failed"  # a member failed on the slide's tiles
    # Notes: `notes` among the facts of a slide, which do not change its state.
    OTHER_PAGE = "other_page"  # the slide is not the file's first page; `page` and `subifd` say which it is
    SEVERAL_PAGES = "several_pages"  # another page may be the slide, or a part of it, as well: one was chosen
    PAGES_UNREAD = "pages_unread"  # a directory beside that of the slide cannot be read
    MPP_DEFAULT = "mpp_default"  # it does not say how large a pixel is: the recipe's `mpp_default` stands in
    # Its description, its tags and OpenSlide state different sizes of a pixel: OpenSlide's is taken, else the first.
    MPP_DISAGREES = "mpp_disagrees"
    ENLARGED = "enlarged"  # its pixels are larger than those of the tiles that the recipe asks for
    OLD_OPENSLIDE = "old_openslide"  # read by an OpenSlide before 4.0.1, which may show uninitialised pixels
    LEVEL_REFUSED = "level_refused"  # a smaller level of the file is not used; `levels_refused` says which and why


class Cause(NamedTuple):
    """A reason with the sentence that explains it to people."""

    code: Reason
    sentence: str


class Refusal(StrEnum):
    """Why the application refused a request: `code` of its JSON, where a slide's error has a Reason."""

    # A request to the application.
    HOST = "host"  # its Host header does not name this server
    ORIGIN = "origin"  # it comes from a page of another origin or site
    TOKEN = "token"  # it lacks the token of this session
    METHOD = "method"  # a method that is not served here
    TOO_LARGE = "too_large"  # a longer address, more headers or a larger body than is accepted
    BAD_REQUEST = "bad_request"  # a parameter is unknown or no number
    NOT_FOUND = "not_found"  # no such page, slide, level or tile
    BUSY = "busy"  # too many requests are waiting
    GONE = "gone"  # whoever asked has gone
    FAILED = "failed"  # an error of the application itself


class LevelFault(StrEnum):
    """Why a level of a pyramid is not used: `code` of a row of `levels_refused`."""

    SIZE = "size"  # one of its sides is not that of the slide at its downsample
    DAMAGED = "damaged"  # it cannot be read
    UNSUPPORTED = "unsupported"  # no decoder here reads it
    DIFFERS = "differs"  # it does not show what level 0 shows
    UNPROVEN = "unproven"  # level 0 has too little contrast to tell whether it does


class RemoteKind(StrEnum):
    """Why a request to Kaggle did not give what was asked for: `kind` of a RemoteError."""

    CREDENTIALS = "credentials"  # none here, unreadable, or not accepted
    INACTIVE = "inactive"  # an access token or a login that has expired or was revoked
    FORBIDDEN = "forbidden"  # not allowed to this account
    RULES = "rules"  # the competition's rules are not accepted
    MISSING = "missing"  # Kaggle has no such thing
    REFUSED = "refused"  # any other no
    BUSY = "busy"  # too many requests
    UNCLEAR = "unclear"  # no readable answer: the request may have been carried out
    EXPIRED = "expired"  # the storage no longer accepts a signed address
    NO_QUOTA = "no_quota"  # the submissions of the day or the hours of the week are used up
    NO_SESSION = "no_session"  # all sessions that an account may have are in use
    NOT_READY = "not_ready"  # a dataset is not in the state that is needed
    FAILED = "failed"  # a run, a dataset's version or a submission ended with an error
    CANCELLED = "cancelled"  # a run was cancelled
    TIMEOUT = "timeout"  # it took longer than the limit here
    MISMATCH = "mismatch"  # Kaggle has, lists or sent something other than expected
    UNSAFE = "unsafe"  # a file name or an address that is refused here
    DISK = "disk"  # a file cannot be written here
    PROXY = "proxy"  # a proxy on the way to Kaggle refuses, cannot be reached, or has an address that is none
    CERTIFICATE = "certificate"  # the certificate that came is not trusted here
    TAKEN = "taken"  # a name that something else on Kaggle has already
    NO_TOTAL = "no_total"  # all submissions that a competition ever allows are used up: no day brings more


class RehearsalKind(StrEnum):
    """Why a bundle was not built or did not pass its rehearsal: `kind` of a RehearsalError."""

    SOURCE = "source"  # main.py is missing, lacks a marker line or is not Python
    TOO_LARGE = "too_large"  # more bytes than Kaggle accepts
    ENVIRONMENT = "environment"  # the isolated Python cannot be made
    EXIT_CODE = "exit_code"  # the kernel ended with an error
    MEMORY = "memory"  # the kernel passed the memory limit
    WALL = "wall"  # the kernel passed the time limit
    STATUS = "status"  # the kernel left no final status.json
    WHEELS = "wheels"  # the kernel did not load the packages of the wheels dataset
    INPUTS = "inputs"  # the kernel changed its inputs
    PROCESSES = "processes"  # a job started more processes and threads than the platform allows
    LEFT_BEHIND = "left_behind"  # files in the working folder that do not belong there
    OUTPUT = "output"  # the submission, the shards or the members are not valid
    LAYOUTS = "layouts"  # the two input layouts gave different outputs
    SERVER = "server"  # the server of a serving kernel was not up in time, or failed a batch of the gateway
    COMPETITION = "competition"  # the rehearsal or a source is that of another competition


class NotRehearsed(StrEnum):
    """A part of a run on Kaggle that a rehearsal could not try: `not_rehearsed` of rehearsal.json."""

    # What a rehearsal could not try.
    IMAGE = "image"  # Kaggle's Docker image, or a container's: here are the locked packages, in this machine's Python
    ACCELERATOR = "accelerator"  # the kernel asks for a GPU or a TPU: here the same bundle ran on the CPU
    RECIPES = "recipes"  # the kernel's own recipes: smaller ones stood in
    DATASETS = "datasets"  # a dataset of the kernel: files of the same form stood in
    MODELS = "models"  # a model of somebody else that the kernel attaches: it was not there
    GATEWAY = "gateway"  # the competition's own gateway and its mounts: a stand-in played batches of linked files


class JobLimit(StrEnum):
    """One of the limits of a job on Grand Challenge: keys of `limits` in rehearsal.json."""

    # The limits of a job on Grand Challenge.
    NETWORK = "network"  # none but the loopback device
    PRIVILEGES = "privileges"  # no capability, and no program gives one
    READ_ONLY_ROOT = "read_only_root"  # only /tmp and /output can be written
    SHARED_MEMORY = "shared_memory"  # the size of /dev/shm
    PROCESSES = "processes"  # processes and threads together
    MEMORY = "memory"  # of all processes together, without swap
    TIME = "time"  # of one job


class Enforcement(StrEnum):
    """Ways to hold a limit in a rehearsal."""

    # How a rehearsal holds a limit.
    ENFORCED = "enforced"  # by the system, as on the platform
    WATCHED = "watched"  # measured at intervals; a job that passes it is killed, and the rehearsal fails
    ABSENT = "absent"  # this system cannot hold it


class TableRepair(StrEnum):
    """A repair of a row in a split's table, as run.json and report.jsonl have it."""

    # A row of a table, read otherwise than it is written.
    BLANK_PATIENT = "blank_patient"  # its patient is blank or a word like nan; the image id has it
    ID_AS_NUMBER = "id_as_number"  # a table program made a number of its patient id; one patient only can be meant
    SPELLING = "spelling"  # its patient id has other capitals or another form of Unicode; one patient only can be meant
    CONTRADICTION = "contradiction"  # its patient contradicts its image id; the other rows or the sample decide
    EXTENSION = "extension"  # its image id has the extension of a file
    OTHER_FILE = "other_file"  # its slide has another extension, other capitals or another encoding of its name
    REPEATED = "repeated"  # another row has the same slide, and says the same
    NOT_IN_SAMPLE = "not_in_sample"  # the sample submission lacks it: scored, but not in the output
    FROM_SAMPLE = "from_sample"  # there is no table: the sample submission has the slide
    NO_FACT = "no_fact"  # no column of tiling.downsample_if or of the ensemble: the default, or an average one, counts
    DERIVED_FACT = "derived_fact"  # the table lacks a fact of the slide, which follows from the files beside it


class TrialEnd(StrEnum):
    """Why a trial of `clotkit tune` has no loss: `reason` of trials.csv."""

    # A trial without a loss.
    PRUNED = "pruned"  # its validation loss was above the median of the others at the same epoch
    DIVERGED = "diverged"  # its loss was not finite
    UNFIT = "unfit"  # its values do not go together, or the network cannot be built with them
    FAILED = "failed"  # its training raised an error, as for too little memory


class TuningVerdict(StrEnum):
    """A comparison of the winner of `clotkit tune` with the untuned recipe: `verdict` of summary.json."""

    # The winner on the outer part, against the untuned recipe.
    BETTER = "better"  # the whole interval of the gain is above 0
    WORSE = "worse"  # the whole interval of the gain is below 0
    UNCLEAR = "unclear"  # the interval of the gain holds 0, or there is none
    SAME = "same"  # the winner is the untuned recipe
    DIVERGED = "diverged"  # one of the two has predictions that are not finite; `diverged` says which


class Misfit(StrEnum):
    """Why a competition's TOML does not fit its data folder: codes of `clotkit competition check`."""

    # A competition's TOML against a data folder.
    FILL_IN = "fill_in"  # a line of the draft still says FILL IN
    NO_TABLE = "no_table"  # a table is missing
    NO_COLUMN = "no_column"  # a table lacks a column
    UNKNOWN_PLACEHOLDER = "unknown_placeholder"  # a pattern names a column that a table lacks
    NO_SLIDE = "no_slide"  # rows of a table have no file by files.slide
    UNUSED_PATTERN = "unused_pattern"  # note: no file matches one of several patterns, and no row needs it
    HIDDEN_TEST = "hidden_test"  # note: no slide of the test table is here, as where the test set is hidden
    UNKNOWN_LABEL = "unknown_label"  # a label is neither a class nor the outlier
    EMPTY_CLASS = "empty_class"  # no row of train has this class
    PRIOR_FAR = "prior_far"  # a prior is far from the share of its class in train
    SAMPLE_HEADER = "sample_header"  # the sample has other columns than submission.id and submission.columns
    SAMPLE_WITHOUT_SLIDE = "sample_without_slide"  # an id of the sample has no row among the test slides
    SLIDE_WITHOUT_SAMPLE = "slide_without_sample"  # a test slide has no row in the sample: it is not in the output
    ID_AS_NUMBER = "id_as_number"  # ids lost zeros, or end with .0: a table program made numbers of them
    NO_FACT = "no_fact"  # a fact is neither a column of the table nor derived from files
    REFUSED = "refused"  # the split cannot be read, for the reason in the sentence
