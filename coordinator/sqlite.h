#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "common/result.h"

struct sqlite3;
struct sqlite3_stmt;

/// The little of SQLite that the store needs, with Result instead of codes. One thread.
namespace moiety::coordinator {

/// A prepared statement: bind, then step until false. Values that are returned live until the next
/// step.
class SqliteStatement {
 public:
  SqliteStatement(SqliteStatement&& other) noexcept
      : statement_(std::exchange(other.statement_, nullptr)) {}
  SqliteStatement& operator=(SqliteStatement&&) = delete;
  ~SqliteStatement();

  /// Parameters from 1 on. Text and blobs are copied.
  void bind(int index, std::int64_t value);
  void bind(int index, std::string_view text);
  void bind_null(int index);
  /// True: there is a row. False: it is done, and may be bound and run again.
  Result<bool> step();
  /// Runs a statement that gives no rows.
  Result<void> run();

  // Columns from 0 on.
  std::int64_t integer(int column) const;
  std::string text(int column) const;
  bool is_null(int column) const;

 private:
  friend class SqliteDatabase;
  explicit SqliteStatement(sqlite3_stmt* statement) : statement_(statement) {}
  sqlite3_stmt* statement_;
};

/// A database file. Errors name the file: kDataLoss (damaged, or no database at all),
/// kResourceExhausted (the disk is full), kIo (everything else that the system refuses).
class SqliteDatabase {
 public:
  /// Opens or makes the file. Its write-ahead log (FILE-wal, once there is one) stays there with
  /// the size that it has when the database is closed.
  static Result<SqliteDatabase> open(const std::filesystem::path& path);
  /// Opens a file as it is on the disk, without its log, to look at it: nothing is written, locked
  /// or made beside it. Only good for what does not change meanwhile.
  static Result<SqliteDatabase> open_to_look(const std::filesystem::path& path);
  SqliteDatabase(SqliteDatabase&& other) noexcept
      : database_(std::exchange(other.database_, nullptr)) {}
  SqliteDatabase& operator=(SqliteDatabase&&) = delete;
  ~SqliteDatabase();

  Result<void> execute(const std::string& sql);
  Result<SqliteStatement> prepare(std::string_view sql);
  /// The integer that a statement (PRAGMA) gives.
  Result<std::int64_t> integer(std::string_view sql);

 private:
  explicit SqliteDatabase(sqlite3* database) : database_(database) {}
  static Result<SqliteDatabase> open(const std::filesystem::path& path,
                                     const std::string& name,
                                     int flags);
  sqlite3* database_;
};

/// BEGIN IMMEDIATE; undone by the destructor unless commit() succeeded.
class SqliteTransaction {
 public:
  static Result<SqliteTransaction> begin(SqliteDatabase& database);
  SqliteTransaction(SqliteTransaction&& other) noexcept
      : database_(std::exchange(other.database_, nullptr)) {}
  SqliteTransaction& operator=(SqliteTransaction&&) = delete;
  ~SqliteTransaction();
  /// What was written is on the disk when this succeeds.
  Result<void> commit();

 private:
  explicit SqliteTransaction(SqliteDatabase* database) : database_(database) {}
  SqliteDatabase* database_;  // null when it is over
};

}  // namespace moiety::coordinator
