#include "common/address.h"

#include <gmock/gmock.h>

namespace moiety {
namespace {

using testing::HasSubstr;

TEST(Address, WhatIsWrittenIsReadBack) {
  for (const auto& [host, text] : {std::pair("127.0.0.1", "127.0.0.1:80"),
                                   {"::1", "[::1]:80"},
                                   {"fe80::1%lo", "[fe80::1%lo]:80"},
                                   {"example.org", "example.org:80"}}) {
    EXPECT_EQ(format_address(host, 80), text);
    const auto read = parse_address(text);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->host, host);
    EXPECT_EQ(read->port, 80);
  }
  EXPECT_EQ(format_address("[::1]", 80), "[::1]:80");
}

TEST(Address, OthersAreRefused) {
  for (const char* text : {"", "7000", ":7000", "h:", "h:70000", "h:-1", "h:8x", "::1:80", "[::1]",
                           "[::1:80", "::1]:80", "[]:80"}) {
    const auto read = parse_address(text);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(read.error().message, HasSubstr(std::string("'") + text + "'"));
  }
}

TEST(Address, LoopbackIsOnlyThisMachine) {
  for (const char* host : {"127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"})
    EXPECT_TRUE(is_loopback(host)) << host;
  for (const char* host : {"0.0.0.0", "::", "[::]", "10.0.0.1", "example.org", "",
                           "127.example.invalid", "127.0.0.1.example.org", "127."})
    EXPECT_FALSE(is_loopback(host)) << host;
}

TEST(Address, Wildcards) {
  for (const char* host : {"0.0.0.0", "::", "[::]"}) EXPECT_TRUE(is_wildcard(host)) << host;
  for (const char* host : {"127.0.0.1", "::1", "", "localhost"})
    EXPECT_FALSE(is_wildcard(host)) << host;
}

}  // namespace
}  // namespace moiety
