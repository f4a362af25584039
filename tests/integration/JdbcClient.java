// Does one thing with pgjdbc and writes the answer to stdout; the login is in libpq's variables.

import java.io.ByteArrayOutputStream;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

public class JdbcClient {
  static Connection connected(String... options) throws SQLException {
    var env = System.getenv();
    var login = new Properties();
    login.setProperty("user", env.get("PGUSER"));
    login.setProperty("password", env.get("PGPASSWORD"));
    login.setProperty("sslmode", "disable");
    for (String option : options) login.setProperty(option.split("=")[0], option.split("=")[1]);
    var where = env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE");
    return DriverManager.getConnection("jdbc:postgresql://" + where, login);
  }

  static String query(String sql) throws SQLException {
    try (var connection = connected(); var statement = connection.createStatement()) {
      var rows = statement.executeQuery(sql);
      rows.next();
      return rows.getString(1);
    }
  }

  static byte[] copy(String table) throws Exception {
    try (var connection = connected()) {
      CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
      copies.copyIn("COPY " + table + " FROM STDIN", System.in);
      var out = new ByteArrayOutputStream();
      copies.copyOut("COPY " + table + " TO STDOUT", out);
      return out.toByteArray();
    }
  }

  static String listen(String channel, String payload) throws SQLException {
    try (var connection = connected(); var other = connected()) {
      connection.createStatement().execute("LISTEN " + channel);
      try (PreparedStatement told = other.prepareStatement("SELECT pg_notify(?, ?)")) {
        told.setString(1, channel);
        told.setString(2, payload);
        told.executeQuery();
      }
      PGNotification[] heard = connection.unwrap(PGConnection.class).getNotifications(10_000);
      return heard[0].getParameter();
    }
  }

  static String cancel(String sql) throws Exception {
    try (var connection = connected(); var statement = connection.createStatement()) {
      var canceller = new Thread(() -> {
        try {
          Thread.sleep(300);
          statement.cancel();
        } catch (Exception failed) {
          failed.printStackTrace();
        }
      });
      canceller.start();
      try {
        statement.execute(sql);
      } catch (SQLException cancelled) {
        return cancelled.getSQLState();
      } finally {
        canceller.join();
      }
      return "it was not cancelled";
    }
  }

  /** The virtual database, as a pool and a tool for databases would use it; one line for each thing. */
  static String virtual(String mode) throws SQLException {
    var said = new StringBuilder();
    try (var connection = connected("preferQueryMode=" + mode, "prepareThreshold=2")) {
      DatabaseMetaData about = connection.getMetaData();
      said.append("valid ").append(connection.isValid(5)).append('\n');
      said.append("catalog ").append(connection.getCatalog()).append('\n');
      said.append("schema ").append(connection.getSchema()).append('\n');
      said.append("no keywords ").append(about.getSQLKeywords() == null).append('\n');
      connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
      connection.setReadOnly(true);
      connection.setReadOnly(false);
      connection.setAutoCommit(false);
      for (ResultSet none : new ResultSet[] {
          about.getSchemas(), about.getTables(null, "public", "%", new String[] {"TABLE"}),
          about.getColumns(null, null, "%", "%"), about.getPrimaryKeys(null, null, "x"),
          about.getTypeInfo(), about.getFunctions(null, null, "%")}) {
        if (none.next()) said.append("the catalogue is not empty\n");
      }
      connection.rollback(connection.setSavepoint());
      try (PreparedStatement asked = connection.prepareStatement("SELECT * FROM qg(?, ?)")) {
        for (int number = 0; number < 5; number++) { // the later ones with a named statement, and in binary
          asked.setString(1, "task=summarize");
          asked.setString(2, "text " + number);
          var rows = asked.executeQuery();
          rows.next();
          said.append(rows.getString("text")).append(' ').append(rows.getInt("tokens_in")).append(' ');
          said.append(rows.getObject("result").getClass().getSimpleName()).append('\n');
        }
      }
      connection.commit();
      try (Statement statement = connection.createStatement()) {
        statement.setFetchSize(2);
        statement.setQueryTimeout(30);
        var models = statement.executeQuery("SHOW models");
        models.next();
        said.append("model ").append(models.getString("name")).append('\n');
        statement.executeUpdate("INSERT INTO t VALUES (1)");
      } catch (SQLException refused) {
        said.append("refused ").append(refused.getSQLState()).append('\n');
      }
      connection.rollback();
      said.append("valid ").append(connection.isValid(5)).append('\n');
    }
    return said.toString();
  }

  public static void main(String[] words) throws Exception {
    switch (words[0]) {
      case "query" -> System.out.print(query(words[1]));
      case "copy" -> System.out.write(copy(words[1]));
      case "listen" -> System.out.print(listen(words[1], words[2]));
      case "cancel" -> System.out.print(cancel(words[1]));
      case "virtual" -> System.out.print(virtual(words[1]));
      default -> throw new IllegalArgumentException(words[0]);
    }
    System.out.flush();
  }
}
