#!/usr/bin/env python3
"""Tests check_includes.py: bad trees fail for the right reason and place, good ones pass."""

import os
import subprocess
import sys
import tempfile
import unittest

CHECKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "check_includes.py")


def run_checker(files):
    """Exit status and printed lines of the checker over a tree of {path: text}."""
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                f.write(text)
        done = subprocess.run(
            [sys.executable, CHECKER, root], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout.splitlines(), done.stderr


class CheckIncludesTest(unittest.TestCase):
    def assert_accepted(self, files):
        status, lines, errors = run_checker(files)
        self.assertEqual((status, errors), (0, ""), lines)

    def assert_refused(self, files, place, *words):
        """One violation, at `place` (path:line), that says all of `words`."""
        status, lines, errors = run_checker(files)
        self.assertEqual((status, errors), (1, ""), lines)
        self.assertEqual(len(lines), 2, lines)
        self.assertTrue(lines[0].startswith(place + ": "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])

    def test_good_tree(self):
        self.assert_accepted(
            {
                "common/result.h": "#include <boost/system/result.hpp>\n",
                "planner/place.h": '#include "common/result.h"\n#include "planner/subset.h"\n',
                "router/engine.cc": '#include <vector>\n#include "model/model.h"\n#include "experts/run.h"\n',
                "cli/main.cc": '#include "coordinator/server.h"\n#include "router/engine.h"\n',
                "tests/planner/place_test.cc": '#include <fstream>\n#include "router/engine.h"\n',
                "proto/convert.cc": '#include "proto/moiety.pb.h"\n#include <google/protobuf/arena.h>\n',
                "http/server.cc": "#include <boost/beast/http.hpp>\n",
                "fabric/ucx/lane.cc": "#include <ucp/api/ucp.h>\n",
                "router/CMakeLists.txt": "moiety_library(router SOURCES a.cc\n  LINK moiety_model)\n",
            }
        )

    def test_upwards(self):
        self.assert_refused(
            {"kernels/gate.h": '#pragma once\n\n#include "model/model.h"\n'},
            "kernels/gate.h:3",
            "kernels/ may not use model/",
            "common",
            "pass it in",
        )

    def test_every_folder_is_refused_what_is_not_named_for_it(self):
        for folder, other in [
            ("common", "kernels"),
            ("kernels", "fabric"),
            ("fabric", "kernels"),
            ("fabric", "checkpoint"),
            ("planner", "checkpoint"),
            ("http", "proto"),
            ("model", "experts"),
            ("experts", "model"),
            ("worker", "router"),
            ("worker", "model"),
            ("router", "coordinator"),
            ("coordinator", "worker"),
            ("coordinator", "model"),
        ]:
            with self.subTest(folder=folder, other=other):
                self.assert_refused(
                    {f"{folder}/a.cc": f'#include "{other}/b.h"\n'},
                    f"{folder}/a.cc:1",
                    f"{folder}/ may not use {other}/",
                )

    def test_angle_brackets_are_no_way_around(self):
        self.assert_refused(
            {"worker/lane_loop.cc": "#include <common/log.h>\n", "common/log.h": ""},
            "worker/lane_loop.cc:1",
            'write "common/log.h"',
        )

    def test_relative_paths_are_no_way_around(self):
        for name in ("../router/engine.h", "engine.h", "router/../worker/loop.h"):
            with self.subTest(name=name):
                self.assert_refused(
                    {"router/a.cc": f'#include "{name}"\n'}, "router/a.cc:1", "repository's root"
                )

    def test_macro_include(self):
        self.assert_refused({"router/a.cc": "#include HEADER\n"}, "router/a.cc:1", "HEADER")

    def test_spaces_in_the_directive(self):
        self.assert_refused(
            {"common/a.h": '  #  include  "proto/convert.h"\n'}, "common/a.h:1", "proto/"
        )

    def test_comments_do_not_count(self):
        self.assert_accepted(
            {"common/a.h": '// #include "router/a.h"\n/*\n#include "router/b.h"\n*/\n'}
        )

    def test_lines_are_counted_through_comments(self):
        self.assert_refused(
            {"common/a.h": '/* one\n two */\n#include "router/b.h"\n'}, "common/a.h:3", "router/"
        )

    def test_third_party_headers(self):
        for path, name, why in [
            ("common/a.h", "boost/asio.hpp", "common is free of Asio"),
            ("common/a.h", "boost/asio/io_context.hpp", "common is free of Asio"),
            ("common/a.cc", "boost/beast/http.hpp", "Beast is only for http/"),
            ("common/a.cc", "google/protobuf/message.h", "protobuf is only for proto/"),
            ("common/a.cc", "cuda_runtime.h", "CUDA code"),
            ("planner/a.cc", "fstream", "planner is free of I/O"),
            ("planner/a.cc", "filesystem", "planner is free of I/O"),
            ("planner/a.cc", "unistd.h", "planner is free of I/O"),
            ("planner/a.cc", "sys/socket.h", "planner is free of I/O"),
            ("router/a.cc", "boost/beast.hpp", "Beast is only for http/"),
            ("coordinator/a.cc", "mpi.h", "MPI is only for its lane"),
            ("fabric/mpi/lane.cc", "ucp/api/ucp.h", "UCX is only for its lane"),
            ("fabric/lane.h", "nccl.h", "CUDA code"),
        ]:
            with self.subTest(path=path, name=name):
                self.assert_refused({path: f"#include <{name}>\n"}, f"{path}:1", why)

    def test_planner_may_not_use_our_file_functions(self):
        self.assert_refused(
            {"planner/a.cc": '#include "common/file.h"\n'}, "planner/a.cc:1", "free of I/O"
        )

    def test_generated_headers(self):
        self.assert_refused(
            {"coordinator/a.cc": '#include "proto/moiety.pb.h"\n'},
            "coordinator/a.cc:1",
            "only for proto/",
        )

    def test_link_lines(self):
        for text, line in [
            ("moiety_library(kernels\n  SOURCES a.cc\n  LINK moiety_common moiety_fabric)\n", 3),
            (
                "moiety_library(kernels SOURCES a.cc)\ntarget_link_libraries(moiety_kernels PRIVATE moiety_fabric)\n",
                2,
            ),
            (
                "# a comment (with parentheses\nmoiety_program(p SOURCES a.cc LINK moiety_fabric_ucx)\n",
                2,
            ),
        ]:
            with self.subTest(text=text):
                self.assert_refused(
                    {"kernels/CMakeLists.txt": text},
                    f"kernels/CMakeLists.txt:{line}",
                    "kernels/ may not link moiety_fabric",
                )

    def test_test_programs_may_link_anything(self):
        self.assert_accepted(
            {
                "kernels/CMakeLists.txt": "moiety_test(a_test LABEL unit SOURCES a.cc LINK moiety_model)\n"
                "target_link_libraries(a_test PRIVATE moiety_router)\n"
            }
        )

    def test_file_names(self):
        good = {"common/result.h": ""}
        for path, word in [
            ("common/threadPool.h", "snake_case"),
            ("common/thread-pool.cc", "snake_case"),
            ("kernels/cpu/gemm.cpp", ".cpp is not used"),
            ("fabric/lane.hpp", ".hpp is not used"),
            ("tests/CheckAll.py", "snake_case"),
        ]:
            with self.subTest(path=path):
                self.assert_refused({**good, path: ""}, f"{path}:1", word)

    def test_empty_tree_is_an_error(self):
        status, lines, _ = run_checker({})
        self.assertEqual(status, 1)
        self.assertIn("no source file found", lines[0])


if __name__ == "__main__":
    unittest.main()
