-- The restored database takes the name of the present one, in one transaction: whatever happens, exactly one has it.
-- A rename keeps new sessions out while it waits, and fails when an old one is still there after 5 s.
DO $$
BEGIN
    FOR attempt IN 1 .. 10 LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN ('lyttle', 'lyttle_restoring');
        BEGIN
            ALTER DATABASE lyttle RENAME TO lyttle_replaced;
            ALTER DATABASE lyttle_restoring RENAME TO lyttle;
            RETURN;
        EXCEPTION WHEN object_in_use THEN
            NULL; -- somebody came in between
        END;
    END LOOP;
    RAISE EXCEPTION 'sessions keep coming to the database lyttle; pg_stat_activity names them';
END $$;
