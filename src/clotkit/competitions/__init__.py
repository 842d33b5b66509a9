"""Read what is particular to one competition from its TOML file.

No other code knows a competition's names, classes or limits. Standard library only: the kernel's supervisor imports
this.
"""

from clotkit.competitions.loading import DEFAULT as DEFAULT
from clotkit.competitions.loading import DEFAULT_FILE as DEFAULT_FILE
from clotkit.competitions.loading import FOLDER as FOLDER
from clotkit.competitions.loading import check_class_names as check_class_names
from clotkit.competitions.loading import load_competition as load_competition
from clotkit.competitions.schema import COLUMNS_OF_TABLES as COLUMNS_OF_TABLES
from clotkit.competitions.schema import UNKNOWN as UNKNOWN
from clotkit.competitions.schema import Classes as Classes
from clotkit.competitions.schema import Columns as Columns
from clotkit.competitions.schema import Competition as Competition
from clotkit.competitions.schema import Fact as Fact
from clotkit.competitions.schema import Files as Files
from clotkit.competitions.schema import Form as Form
from clotkit.competitions.schema import Ids as Ids
from clotkit.competitions.schema import Limits as Limits
from clotkit.competitions.schema import Rule as Rule
from clotkit.competitions.schema import Sizes as Sizes
from clotkit.competitions.schema import Submission as Submission
from clotkit.competitions.schema import Unit as Unit
from clotkit.competitions.schema import label_key as label_key
