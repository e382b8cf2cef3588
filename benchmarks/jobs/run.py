"""Three real jobs, each done in every way and measured alike.

    LIGHTNING_UNLEARN_DATA=folder python benchmarks/jobs/run.py --model MODEL
    LIGHTNING_UNLEARN_DATA=folder python benchmarks/jobs/run.py images
    python benchmarks/jobs/run.py --draw

Jobs: images, texts (MODEL is a folder with all-MiniLM-L6-v2), people, made people. What
is measured is kept in results/jobs.json, and only what is missing there is run again.
It needs the extras private and texts. One thread, more than an hour of it.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from page import publish_all

RESULTS = Path(__file__).parent.parent / "results"
JOBS = ("images", "texts", "people", "made people")


def cells(job: str, known, options):
    """(name of a cell, how to measure it), the quick and important first."""
    if job == "images":
        import images_job

        return images_job.cells(known, options.quick)
    if job == "texts":
        import texts_job

        return texts_job.cells(known, options.quick, options.model)
    import people_job

    return people_job.cells(job, known, options.quick)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("jobs", nargs="*", default=JOBS)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--skip", default="-", help="cells whose name does not")
    parser.add_argument("--model", default="", help="folder of the language model")
    parser.add_argument("--quick", action="store_true", help="tiny: a test")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.results / "jobs.json"

    def read():
        return json.loads(file.read_text()) if file.exists() else {}

    for job in () if options.draw else options.jobs:
        for name, work in cells(job, lambda n: read()[n], options):
            wanted = options.only in name and options.skip not in name
            if wanted and name not in read():
                found = work()  # others may be at work on the same file
                file.write_text(json.dumps({**read(), name: found}, indent=1) + "\n")
                print(name, found, flush=True)
    publish_all(read(), options.results)


if __name__ == "__main__":
    main()
