"""For whoever writes a method: `check_method` holds it to every promise of the contract, on small `toy_stream`s."""

from everlearn.testing.case import session as session
from everlearn.testing.promises import CHECKS as CHECKS
from everlearn.testing.promises import Promises as Promises
from everlearn.testing.promises import check_method as check_method
from everlearn.testing.toy import tiny_pair as tiny_pair
from everlearn.testing.toy import toy_stream as toy_stream
