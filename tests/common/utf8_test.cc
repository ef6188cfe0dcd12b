#include "common/utf8.h"

#include <gtest/gtest.h>

namespace moiety {
namespace {

TEST(Printable, KeepsTextAndMakesTheRestVisible) {
  EXPECT_EQ(printable("file: \xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\n\tnext"),
            "file: \xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\n\tnext");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\x1b[2J\x7f\r"), "\\x1b[2J\\x7f\\x0d");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m")
      << "CSI as one character";
  EXPECT_EQ(printable("a\xff\xc3"), "a\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(printable(""), "");
}

}  // namespace
}  // namespace moiety
