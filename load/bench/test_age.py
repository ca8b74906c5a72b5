"""Tests of the age of the results.

  python3 -m unittest discover load/bench
"""

import os
import subprocess
import tempfile
import unittest

import age
from service import ROOT


class AgeTest(unittest.TestCase):
    def test_commits_that_change_the_hot_path_are_counted_and_no_others(self):
        with tempfile.TemporaryDirectory() as folder:
            def git(*arguments):
                names = {f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
                command = ["git", "-c", "commit.gpgsign=false", *arguments]
                return subprocess.run(command, cwd=folder, env=os.environ | names, capture_output=True, text=True, check=True).stdout

            def commit(file):
                path = os.path.join(folder, file)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "a") as opened:
                    opened.write("changed\n")
                git("add", "-A")
                git("commit", "-q", "-m", file)

            git("init", "-q")
            commit("src/storage/batch.rs")
            measured = git("rev-parse", "--short", "HEAD").strip()
            self.assertEqual(age.commits_since(measured, folder), 0)
            commit("docs/capacity.md")
            commit("src/payments/charges/mod.rs")
            commit("migrations/one/up.sql")
            self.assertEqual(age.commits_since(measured, folder), 2)
            self.assertIsNone(age.commits_since("abcdef0", folder), "no such commit")

    def test_the_commit_is_the_one_in_the_report(self):
        self.assertEqual(age.measured_commit("Made by `x` on 2026-11-24, of commit 0a1b2c3, on x86_64"), "0a1b2c3")
        self.assertEqual(age.measured_commit("Made by `x` on 2026-11-24, of commit 0a1b2c3-dirty, on"), "0a1b2c3")

    def test_what_the_hot_path_names_is_there(self):
        for path in age.HOT_PATH:
            self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)
