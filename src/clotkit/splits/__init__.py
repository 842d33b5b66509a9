"""Read a split folder: its table of slides and its sample submission, as people's programs write them.

Ids are always strings: `006388` is not a number. Standard library only.
"""

from clotkit.splits.sample import Sample as Sample
from clotkit.splits.sample import read_sample as read_sample
from clotkit.splits.sample import read_sample_ids as read_sample_ids
from clotkit.splits.slides import SYNTHETIC as SYNTHETIC
from clotkit.splits.slides import SlideRow as SlideRow
from clotkit.splits.slides import first_of_each_class as first_of_each_class
from clotkit.splits.slides import in_store as in_store
from clotkit.splits.slides import kind_of as kind_of
from clotkit.splits.slides import read_slides as read_slides
from clotkit.splits.slides import row_id as row_id
from clotkit.splits.slides import split_of as split_of
from clotkit.splits.slides import tables_of as tables_of
from clotkit.splits.tables import Row as Row
from clotkit.splits.tables import read_table as read_table
from clotkit.splits.tables import rows_of as rows_of
